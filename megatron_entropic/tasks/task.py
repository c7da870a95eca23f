"""The contract of a task: an endless, seeded stream of problems and an exact, total verifier."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Problem:
    """One problem. `data` is what the verifier needs, JSON-able, so that it can be recorded with the rollouts."""

    prompt: str
    data: Mapping[str, Any] = field(default_factory=dict)


class Task(Protocol):
    """Prompts with verifiable rewards. Pure: the same (seed, index) gives the same problem on every machine."""

    def problem(self, index: int) -> Problem:
        """Problem number `index` (>= 0) of the stream."""
        ...

    def score(self, problem: Problem, response: str) -> float:
        """Reward in [0, 1] of a response text (without the end-of-sequence token). Never raises, whatever the text."""
        ...
