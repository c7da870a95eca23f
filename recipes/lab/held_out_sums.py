"""Sums that no run of the lab was trained on: `task.name=recipes.lab.held_out_sums:make`.

The product's evaluation draws from another stream of problems than training, which is enough where problems hardly repeat. From 1
to 30 there are 900 sums, and 60 updates of 12 prompts ask half of them. So the sums that training asks are left out here, of every
seed alike, and all runs are scored on the same ones. Asked and judged as `addition` does, with its options; two more say what was
trained on:

    trained_seeds       seeds 0 ... trained_seeds - 1 (1)
    trained_problems    problems 0 ... trained_problems - 1 of each (0)

"held out" is the sum in this order: 19 + 14 may have been trained on where 14 + 19 was not.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, ClassVar

from megatron_entropic.tasks.addition import Addition, make_addition
from megatron_entropic.tasks.options import integer
from megatron_entropic.tasks.task import Problem

_OWN = ("trained_seeds", "trained_problems")
_MOST_PAIRS = 10**6
"""Sums that are listed in memory."""


@dataclass(frozen=True)
class HeldOutSums:
    """The task (megatron_entropic/tasks/task.py says what a task promises). Problem i is the i-th of `held_out`, whatever the seed."""

    inline: ClassVar[bool] = True

    addition: Addition
    held_out: tuple[Problem, ...]

    def problem(self, index: int) -> Problem:
        """A held-out sum, each once. Raises ValueError for an index beyond them."""
        if not 0 <= index < len(self.held_out):
            raise ValueError(f"problem {index}: there are {len(self.held_out)} sums that no run was trained on; ask for fewer")
        return self.held_out[index]

    def score(self, problem: Problem, response: str) -> float:
        """As `addition` does."""
        return self.addition.score(problem, response)


def make(options: Mapping[str, Any], seed: int) -> HeldOutSums:
    """The task from `task.options`; `seed` does not matter. Raises ValueError naming the option that is unknown or out of bounds."""
    seeds = integer(options, "trained_seeds", 1, at_least=0, at_most=1000)
    problems = integer(options, "trained_problems", 0, at_least=0, at_most=_MOST_PAIRS)
    addition = make_addition({name: value for name, value in options.items() if name not in _OWN}, seed)
    return HeldOutSums(addition, tuple(_held_out(addition, _asked(options, seeds, problems))))


def _asked(options: Mapping[str, Any], seeds: int, problems: int) -> set[str]:
    """The prompts that training asks."""
    streams = [make_addition({name: value for name, value in options.items() if name not in _OWN}, seed) for seed in range(seeds)]
    return {stream.problem(index).prompt for stream in streams for index in range(problems)}


def _held_out(addition: Addition, asked: set[str]) -> list[Problem]:
    """All other sums, in an order that depends on their wording alone."""
    operands = range(addition.low, addition.high + 1)
    if len(operands) ** 2 > _MOST_PAIRS:
        raise ValueError(f"task.options.low={addition.low}, high={addition.high}: more than {_MOST_PAIRS} sums")
    sums = [addition.problem_of(first, second) for first in operands for second in operands]
    return sorted((it for it in sums if it.prompt not in asked), key=lambda it: sha256(it.prompt.encode()).digest())
