"""The contract of a task: an endless, seeded stream of problems and an exact, total verifier."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Problem:
    """One problem. `data` is what the verifier needs, JSON-able, so that it can be recorded with the rollouts.

    Where more is asked than one message of the user, `messages` are the chat (role and content each) and `prompt` is what the user
    asks; `template_options` are arguments of the chat template, such as enable_thinking.
    """

    prompt: str
    data: Mapping[str, Any] = field(default_factory=dict)
    messages: Sequence[Mapping[str, str]] = ()
    template_options: Mapping[str, Any] = field(default_factory=dict)


class Verifier(Protocol):
    """The half of a task that judges answers. Runs make it in processes of its own, which load the task's module and little else."""

    def score(self, problem: Problem, response: str) -> float | Mapping[str, float]:
        """Reward in [0, 1] of a response text (without the end-of-sequence token); of a mapping, that is "score", and the others are
        parts of it, whose means become the metrics reward/part/NAME.

        It should not raise, whatever the text. What does, or takes longer than the run's limits, is counted, named and scored
        by `reward.on_failure`.
        """
        ...


class Task(Verifier, Protocol):
    """Prompts with verifiable rewards. Pure: the same (seed, index) gives the same problem on every machine.

    A class attribute `inline = True` says that `score` takes microseconds for any text: the trainer then calls it directly.
    A class attribute `verifier = "package.module:function"` names a factory, called with (options, seed) like the task's own,
    of something that only scores; where making the whole task is costly, the processes make that instead.
    A method `waits(problem)` says whether judging its answers is waiting for a server: threads then call `score`, many at a time.
    """

    def problem(self, index: int) -> Problem:
        """Problem number `index` (>= 0) of the stream."""
        ...
