"""A reward of your own for problems that are there: another task's problems, judged otherwise.

    megatron-entropic train quickstart task.name=examples/own_reward.py:BalancedSums

Group-relative advantages live on differences between the samples of a prompt. Where an answer can be partly right, saying so gives a
signal in groups that would otherwise be all right or all wrong.
"""

from collections.abc import Mapping
from typing import Any

from megatron_entropic.tasks import Problem
from megatron_entropic.tasks.decompose import make_decompose


class BalancedSums:
    """The quickstart's task, "347=" answered by any sum; the nearer its two terms, the better."""

    inline = False
    """Judged in processes beside generation, each answer within `reward.cpu_limit_s` and `reward.memory_gb`. They import this module
    too, so it does without torch."""

    def __init__(self, options: Mapping[str, Any], seed: int) -> None:
        self.task = make_decompose(options, seed)

    def problem(self, index: int) -> Problem:
        """The other task's."""
        return self.task.problem(index)

    def score(self, problem: Problem, response: str) -> float:
        """0 for a wrong sum, half for a right one, the other half by how near its terms are. Never raises."""
        if not self.task.score(problem, response):
            return 0.0
        first, second = map(int, response.split("+"))
        return 1.0 - 0.5 * abs(first - second) / (first + second)
