r"""The verifier of maths answers: the last box of a response against the known answer."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from megatron_entropic.tasks.math_answers.boxes import boxed
from megatron_entropic.tasks.math_answers.compare import answerable, same
from megatron_entropic.tasks.task import Problem

LONGEST_ANSWER = 1000
"""Characters; a longer answer scores 0."""


class MathVerifier:
    """Scores answers; runs in a process of its own, because algebra knows no limits (tasks/verification)."""

    def __init__(self) -> None:
        self._same = lru_cache(maxsize=100_000)(same)

    def score(self, problem: Problem, response: str) -> float:
        """1.0 when the last box of `response` means problem.data["answer"]; 0.0 for anything else, and for no box."""
        return self.score_of(str(problem.data["answer"]), boxed(response))

    def score_of(self, known: str, answer: str | None) -> float:
        """1.0 when `answer` means `known`; 0.0 for anything else, and for None."""
        if answer is None or len(answer) > LONGEST_ANSWER:
            return 0.0
        return float(self._same(known, answer))


def make_math_verifier(options: Mapping[str, Any], seed: int) -> MathVerifier:
    """The verifier, with the parser loaded: the first answer is to be as fast as the others."""
    import latex2sympy2_extended
    import math_verify

    assert latex2sympy2_extended
    assert math_verify
    return MathVerifier()


def unreadable(known: str) -> str | None:
    """The reason why no answer can equal a known one, in a few words; None when it can."""
    if len(known) > LONGEST_ANSWER:
        return f"is longer than the {LONGEST_ANSWER} characters that are compared"
    return None if answerable(known) else "says nothing that an answer could equal"
