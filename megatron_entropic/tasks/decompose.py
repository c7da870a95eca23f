"""Decompose: "347=" is answered by any "a+b" with a + b = 347. Many right answers, so entropy can stay without costing reward.

`task.options`: `low` (100) and `high` (999), the bounds of the number asked for, both included.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, ClassVar

from megatron_entropic.tasks.options import integer, refuse_unknown
from megatron_entropic.tasks.task import Problem

_LARGEST = 10**9
# [0-9], not \d: \d also matches the digits of every other script, which int() would accept too.
_ANSWER = re.compile(r"(0|[1-9][0-9]*)\+(0|[1-9][0-9]*)")


@dataclass(frozen=True)
class Decompose:
    """The task (task.py says what a task promises). Problem i of seed s depends on (s, i, low, high) alone."""

    inline: ClassVar[bool] = True

    seed: int
    low: int = 100
    high: int = 999

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high <= _LARGEST:
            raise ValueError(f"task.options.low={self.low}, high={self.high}: must satisfy 0 <= low <= high <= {_LARGEST}")

    def problem(self, index: int) -> Problem:
        """A number drawn uniformly from [low, high], with replacement. Raises ValueError on a negative index."""
        if index < 0:
            raise ValueError(f"problem index {index}: must be >= 0")
        digest = sha256(f"decompose {self.seed} {index}".encode()).digest()
        # 256 bits modulo at most 2**30: the bias is below 2**-226.
        total = self.low + int.from_bytes(digest) % (self.high - self.low + 1)
        return Problem(prompt=f"{total}=", data={"total": total})

    def score(self, problem: Problem, response: str) -> float:
        """1.0 when `response` is exactly "a+b": ASCII decimal, no leading zeros, nothing before or after, the right sum."""
        return 1.0 if is_decomposition(response, int(problem.data["total"])) else 0.0


def is_decomposition(response: str, total: int) -> bool:
    """Whether `response` is "a+b" with a + b = `total`. Total: any text gets an answer, in time linear in len(str(total))."""
    digits = len(str(total))
    # Neither term can be longer than the sum: refused before int(), which is quadratic and raises on huge strings.
    if len(response) > 2 * digits + 1:
        return False
    match = _ANSWER.fullmatch(response)
    return match is not None and int(match[1]) + int(match[2]) == total


def make_decompose(options: Mapping[str, Any], seed: int) -> Decompose:
    """The task from `task.options`. Raises ValueError naming the option that is unknown or out of bounds."""
    refuse_unknown("decompose", options, ("low", "high"))
    low = integer(options, "low", 100, at_least=0, at_most=_LARGEST)
    high = integer(options, "high", 999, at_least=low, at_most=_LARGEST)
    return Decompose(seed=seed, low=low, high=high)
