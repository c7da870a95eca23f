"""Addition: "37+58=" is answered by "95" alone. One right answer, so a group of samples that is all right has no advantage left.

`task.options`: `low` (10) and `high` (99), the bounds of both operands, both included.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, ClassVar

from megatron_entropic.tasks.options import integer, refuse_unknown
from megatron_entropic.tasks.task import Problem

_LARGEST = 10**9


@dataclass(frozen=True)
class Addition:
    """The task (task.py says what a task promises). Problem i of seed s depends on (s, i, low, high) alone."""

    inline: ClassVar[bool] = True

    seed: int
    low: int = 10
    high: int = 99

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high <= _LARGEST:
            raise ValueError(f"task.options.low={self.low}, high={self.high}: must satisfy 0 <= low <= high <= {_LARGEST}")

    def problem(self, index: int) -> Problem:
        """Two operands drawn uniformly from [low, high], with replacement. Raises ValueError on a negative index."""
        if index < 0:
            raise ValueError(f"problem index {index}: must be >= 0")
        digest = sha256(f"addition {self.seed} {index}".encode()).digest()
        # Half of the digest each: 128 bits modulo at most 2**30, so the bias is below 2**-98.
        first, second = (self.low + int.from_bytes(half) % (self.high - self.low + 1) for half in (digest[:16], digest[16:]))
        return Problem(prompt=f"{first}+{second}=", data={"total": first + second})

    def score(self, problem: Problem, response: str) -> float:
        """1.0 when `response` is exactly the sum: ASCII decimal, no leading zeros, nothing before or after."""
        return 1.0 if response == str(problem.data["total"]) else 0.0


def make_addition(options: Mapping[str, Any], seed: int) -> Addition:
    """The task from `task.options`. Raises ValueError naming the option that is unknown or out of bounds."""
    refuse_unknown("addition", options, ("low", "high"))
    low = integer(options, "low", 10, at_least=0, at_most=_LARGEST)
    high = integer(options, "high", 99, at_least=low, at_most=_LARGEST)
    return Addition(seed=seed, low=low, high=high)
