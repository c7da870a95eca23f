"""A task of your own: problems made by a rule, and the rule by which an answer is right.

    megatron-entropic train quickstart task.name=examples/own_task.py:Sums task.options.low=300

`task.name` names what is called with `task.options` and `trainer.seed`; what it makes has two methods. The tiny model of the
quickstart answers "347=" with a sum, so this task asks for sums too; a prompt may be any text.
"""

import random
import re
from collections.abc import Mapping
from typing import Any

from megatron_entropic.tasks import Problem


class Sums:
    """Asks for two numbers of a given sum that are more than `apart` apart."""

    inline = True
    """`score` takes microseconds: it is called where the rollouts are collected. Slower ones run in processes of their own, within
    limits of time and memory, when this is False."""

    def __init__(self, options: Mapping[str, Any], seed: int) -> None:
        self.low, self.high = int(options.get("low", 100)), int(options.get("high", 998))
        self.apart = int(options.get("apart", 0))
        if not 1 <= self.low <= self.high:  # shown as one line, with the setting's name
            raise ValueError(f"task.options.low={self.low}, high={self.high}: must satisfy 1 <= low <= high")
        self.seed = seed

    def problem(self, index: int) -> Problem:
        """Problem `index`: the seed and the index alone say which, so that a resumed run has the same."""
        number = random.Random(f"{self.seed} {index}").randint(self.low, self.high)
        return Problem(prompt=f"{number}=", data={"number": number})  # data: JSON, for `score`, recorded with the rollout

    def score(self, problem: Problem, response: str) -> float:
        """From 0 to 1. Never raises, whatever a model writes."""
        terms = re.fullmatch(r"([0-9]{1,3})\+([0-9]{1,3})", response)
        if terms is None:
            return 0.0
        first, second = map(int, terms.groups())
        return float(first + second == problem.data["number"] and abs(first - second) >= self.apart)
