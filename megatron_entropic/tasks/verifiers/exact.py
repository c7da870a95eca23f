"""The answer letter by letter, apart from white space around it."""

from collections.abc import Mapping
from typing import Any

from megatron_entropic.tasks.row_values import BadRowError


class Exact:
    """Scores 1 when the whole response is the answer."""

    reads: tuple[str, ...] = ()

    def known_answer(self, text: str, row: Mapping[str, Any]) -> str:
        """The text, stripped."""
        if not text.strip():
            raise BadRowError("the answer is empty")
        return text.strip()

    def response_of(self, answer: str) -> str:
        """The answer."""
        return answer

    def score(self, answer: str, row: Mapping[str, Any], response: str) -> float:
        """1.0 or 0.0."""
        return float(response.strip() == answer)


def make_exact(options: Mapping[str, Any]) -> Exact:
    """It has no options."""
    if options:
        raise ValueError(f"verifier exact has no options; given: {', '.join(options)}")
    return Exact()
