"""One answer before one verifier: whatever the verifier does short of ending the process becomes a verdict."""

import math
import re
from collections.abc import Mapping
from typing import Any

from megatron_entropic.tasks.task import Problem, Verifier
from megatron_entropic.tasks.verification.records import Verdict

_LONGEST_REASON = 500
"""Characters of what a verifier's exception says."""
_MOST_PARTS = 64
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./-]{0,119}")


def judge(verifier: Verifier, problem: Problem, response: str, *, passing: tuple[type[BaseException], ...]) -> Verdict:
    """The verdict on `response`; "failed" when the verifier raises, SystemExit too, or returns no number in [0, 1].

    Where it returns a mapping, "score" is that number and the others are its parts.

    `passing`: exceptions that are not the verifier's failure and are let through.
    """
    try:
        returned: Any = verifier.score(problem, response)
        parts = _parts(returned) if isinstance(returned, Mapping) else {}
        returned = returned["score"] if isinstance(returned, Mapping) else returned
        if isinstance(returned, str | bytes):  # float() would take it
            return Verdict(0.0, "failed", f"returned the text {returned[:40]!r}, not a number in [0, 1]")
        score = float(returned)
    except passing:
        raise
    except BaseException as error:  # noqa: BLE001 - a failure of one answer, which the run scores by its policy
        return Verdict(0.0, "failed", described(error))
    if not (math.isfinite(score) and 0.0 <= score <= 1.0):
        return Verdict(0.0, "failed", f"returned {score}, which is not a score in [0, 1]")
    return Verdict(score, parts=parts)


def _parts(returned: Mapping[Any, Any]) -> dict[str, float]:
    """The parts beside the score. Raises ValueError for what cannot name a metric, or is no finite number."""
    if "score" not in returned:
        raise ValueError(f"returned parts without a score: {', '.join(map(str, list(returned)[:10]))}")
    if len(returned) > _MOST_PARTS:
        raise ValueError(f"returned {len(returned)} parts; {_MOST_PARTS} at most")
    parts = {}
    for name, value in returned.items():
        if name == "score":
            continue
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(f"returned a part named {str(name)[:40]!r}; letters, digits and _ . / - can name one")
        if isinstance(value, str | bytes) or not math.isfinite(float(value)):
            raise ValueError(f"returned {value!r} as the part {name}, not a finite number")
        parts[name] = float(value)
    return parts


def described(error: BaseException) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:_LONGEST_REASON].removesuffix(": ")
