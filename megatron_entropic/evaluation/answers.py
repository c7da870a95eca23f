"""What a response answers, as far as equal answers can be told without a verifier: for a vote among samples."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from megatron_entropic.tasks.math_answers import boxed_or_marked
from megatron_entropic.tasks.math_answers.plain import compact, plain

_LONGEST = 1000
"""Characters; what is longer is no final answer and has no vote."""
_RIGHT = ("right",)


def votes(responses: Sequence[str], rewards: Sequence[float], data: Mapping[str, Any]) -> list[Hashable]:
    """The answer of each response to one problem, equal where they are; None for a response without one.

    Where the problem has one known answer (`data["answer"]`), all that the verifier found right are equal. Others are compared as they
    stand in the last box, after a final #### or in <answer>, or whole where there is none of these, without spaces and LaTeX's ways of
    saying the same.
    """
    known = "answer" in data
    return [_RIGHT if known and reward == 1.0 else normalised(response) for response, reward in zip(responses, rewards, strict=True)]


def normalised(response: str) -> str | None:
    """The final answer of a response in a form that equal answers share; None when there is none."""
    answer = boxed_or_marked(response)
    if answer is None:
        answer = _tagged(response)
    text = compact(plain(answer)) if len(answer) <= _LONGEST else ""
    return text or None


def _tagged(response: str) -> str:
    before, opened, after = response.rpartition("<answer>")
    answer, closed, _ = after.partition("</answer>")
    return answer if opened and closed else before + opened + after
