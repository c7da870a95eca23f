r"""The answer in the last \boxed{...}, else after a final ####, by its meaning: tasks/math_answers."""

from collections.abc import Mapping
from typing import Any

from megatron_entropic.tasks.math_answers import MathVerifier, boxed_or_marked, make_math_verifier
from megatron_entropic.tasks.verifiers.options import Options


class Maths:
    """Scores as the task math does, and reads `#### 42` where there is no box: rows of GSM8K as verl has them ask for that."""

    reads: tuple[str, ...] = ()

    def __init__(self) -> None:
        self._verifier: MathVerifier | None = None

    def start(self) -> None:
        """Loads the parser, which takes a second or two: only where answers are judged."""
        self._verifier = self._verifier or make_math_verifier({}, 0)

    def known_answer(self, text: str, row: Mapping[str, Any]) -> str:
        """As of the task math: after ####, in a box, or the whole."""
        from megatron_entropic.tasks.math import known_answer

        return known_answer(text)

    def response_of(self, answer: str) -> str:
        """The answer in a box."""
        return rf"\boxed{{{answer}}}"

    def score(self, answer: str, row: Mapping[str, Any], response: str) -> float:
        """1.0 or 0.0."""
        self.start()
        assert self._verifier is not None
        return self._verifier.score_of(answer, boxed_or_marked(response))


def make_math(options: Mapping[str, Any]) -> Maths:
    """It has no options."""
    Options("math", options)
    return Maths()
