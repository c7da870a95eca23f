"""One answer before one verifier: whatever the verifier does short of ending the process becomes a verdict."""

import math
from typing import Any

from megatron_entropic.tasks.task import Problem, Verifier
from megatron_entropic.tasks.verification.records import Verdict

_LONGEST_REASON = 500
"""Characters of what a verifier's exception says."""


def judge(verifier: Verifier, problem: Problem, response: str, *, passing: tuple[type[BaseException], ...]) -> Verdict:
    """The verdict on `response`; "failed" when the verifier raises, SystemExit too, or returns no number in [0, 1].

    `passing`: exceptions that are not the verifier's failure and are let through.
    """
    try:
        returned: Any = verifier.score(problem, response)
        if isinstance(returned, str | bytes):  # float() would take it
            return Verdict(0.0, "failed", f"returned the text {returned[:40]!r}, not a number in [0, 1]")
        score = float(returned)
    except passing:
        raise
    except BaseException as error:  # noqa: BLE001 - a failure of one answer, which the run scores by its policy
        return Verdict(0.0, "failed", described(error))
    if not (math.isfinite(score) and 0.0 <= score <= 1.0):
        return Verdict(0.0, "failed", f"returned {score}, which is not a score in [0, 1]")
    return Verdict(score)


def described(error: BaseException) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:_LONGEST_REASON].removesuffix(": ")
