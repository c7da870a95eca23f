"""Addition: "37+58=" is answered by "95" alone. One right answer, so a group of samples that is all right has no advantage left.

`task.options`: `low` (10) and `high` (99), the bounds of both operands, both included; `prompt_template` ("{first}+{second}="; other
braces are text); `answer` ("whole"): the whole response is the sum, or "last": the last number in it is, as models answer that talk.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, ClassVar

from megatron_entropic.tasks.options import integer, refuse_unknown, text
from megatron_entropic.tasks.task import Problem

_LARGEST = 10**9
_TEMPLATE = "{first}+{second}="
_OPERANDS = ("{first}", "{second}")
_ANSWERS = ("whole", "last")
_TERM = re.compile(r"[-\u2212]?[^\W_]+(?:[.,/^][^\W_]+)*")
"""Words between spaces and signs: "37", "-37", "3.7", "1,037", "x37". One pass, whatever the text."""


@dataclass(frozen=True)
class Addition:
    """The task (task.py says what a task promises). Problem i of seed s depends on (s, i, low, high) alone, but for its wording."""

    inline: ClassVar[bool] = True

    seed: int
    low: int = 10
    high: int = 99
    prompt_template: str = _TEMPLATE
    answer: str = "whole"

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high <= _LARGEST:
            raise ValueError(f"task.options.low={self.low}, high={self.high}: must satisfy 0 <= low <= high <= {_LARGEST}")
        if missing := [operand for operand in _OPERANDS if operand not in self.prompt_template]:
            raise ValueError(f"task.options.prompt_template={self.prompt_template!r}: must contain {' and '.join(missing)}")
        if self.answer not in _ANSWERS:
            raise ValueError(f"task.options.answer={self.answer!r}: must be one of {', '.join(_ANSWERS)}")

    def problem(self, index: int) -> Problem:
        """Two operands drawn uniformly from [low, high], with replacement. Raises ValueError on a negative index."""
        if index < 0:
            raise ValueError(f"problem index {index}: must be >= 0")
        digest = sha256(f"addition {self.seed} {index}".encode()).digest()
        # Half of the digest each: 128 bits modulo at most 2**30, so the bias is below 2**-98.
        first, second = (self.low + int.from_bytes(half) % (self.high - self.low + 1) for half in (digest[:16], digest[16:]))
        return self.problem_of(first, second)

    def problem_of(self, first: int, second: int) -> Problem:
        """The problem of these two operands, in this order."""
        prompt = self.prompt_template.replace("{first}", str(first)).replace("{second}", str(second))
        return Problem(prompt=prompt, data={"total": first + second})

    def score(self, problem: Problem, response: str) -> float:
        """1.0 when `response`, or the last number in it, is exactly the sum: ASCII decimal, no sign, no leading zeros, no fraction."""
        given = response if self.answer == "whole" else last_number(response)
        return 1.0 if given == str(problem.data["total"]) else 0.0


def last_number(response: str) -> str:
    """The last term of `response` with a digit in it, with all that belongs to it ("-37", "3.7", "x37"); "" when there is none."""
    return next((term for term in reversed(_TERM.findall(response)) if any(map(str.isdigit, term))), "")


def make_addition(options: Mapping[str, Any], seed: int) -> Addition:
    """The task from `task.options`. Raises ValueError naming the option that is unknown or out of bounds."""
    refuse_unknown("addition", options, ("low", "high", "prompt_template", "answer"))
    low = integer(options, "low", 10, at_least=0, at_most=_LARGEST)
    high = integer(options, "high", 99, at_least=low, at_most=_LARGEST)
    template, answer = text(options, "prompt_template", _TEMPLATE), text(options, "answer", "whole")
    return Addition(seed=seed, low=low, high=high, prompt_template=template, answer=answer)
