"""Rewards of rollouts: verified beside generation, in processes (tasks/verification), and put together in the rollouts' order.

What an answer scores depends on the answer alone, so rewards do not depend on when it was judged, by whom or after which.
One with a sampled id that is no token scores 0 unseen: its text is not all that was said. (Masking such ids in sampling would
need the same mask in the policy for log-probs to stay exact.)
"""

import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from megatron_entropic.config import RewardConfig, TaskConfig
from megatron_entropic.rollout.types import Rollout
from megatron_entropic.rollout.vocabulary import Vocabulary
from megatron_entropic.system.stop_signal import raised_by_signals
from megatron_entropic.tasks import verifier_spec
from megatron_entropic.tasks.task import Problem, Task
from megatron_entropic.tasks.verification import Limits, Verdict, VerifierError, VerifierPool, WaitingPool, judge

logger = logging.getLogger(__name__)

_NAMED = 3
"""Unlike failures that a step names in full; the others it counts."""


@dataclass(frozen=True)
class Scores:
    """Rewards in the order of the rollouts, what verifying them counted and the means of parts, by metric, and seconds taken."""

    rewards: list[float]
    counts: dict[str, float]
    seconds: float

    @property
    def metrics(self) -> dict[str, float]:
        """All that the step's metrics say of it."""
        return {**self.counts, "time/score_s": self.seconds}


class Scorer:
    """Scores the answers to `task`'s problems. One process (rank 0) uses it; `begin` may be called from any of its threads.

    `task` is what make_task(cfg, seed) gave, `vocabulary` that of the policy's tokenizer. Raises VerifierError when the verifier
    cannot be made in a process of its own. `max_tokens`: those of the longest response, where length is to cost something
    (reward.overlong_buffer).

    A task may have `waits(problem)`: whether judging its answers is waiting for a server. Those are judged by threads.
    """

    def __init__(
        self, task: Task, cfg: TaskConfig, seed: int, reward: RewardConfig, vocabulary: Vocabulary, *, max_tokens: int | None = None
    ) -> None:
        self.task = task
        self.vocabulary = vocabulary
        self._warned_of_unknown = False
        self.cfg = cfg
        self.reward = reward
        self._pending: dict[tuple[int, str], Future[Verdict]] = {}
        self._max_tokens = max_tokens if reward.overlong_buffer else None
        self._waits: Callable[[Problem], bool] = getattr(task, "waits", lambda problem: False)
        self._waiting = WaitingPool(task, reward.requests)
        self._pool: VerifierPool | None = None
        if (spec := verifier_spec(cfg, seed, task)) is not None:
            limits = Limits(reward.cpu_limit_s, reward.wall_limit_s, int(reward.memory_gb * 2**30))
            self._pool = VerifierPool(spec, limits, reward.workers or default_workers())
            try:
                self._pool.start()
            except BaseException:
                self._pool.close()
                raise

    def begin(self, rollouts: Sequence[Rollout], problems: Mapping[int, Problem]) -> None:
        """Has answers judged ahead of `finish`; does not wait. Of equal answers to one prompt, one is judged."""
        for rollout in rollouts:
            key, problem = (rollout.prompt_index, rollout.text), problems[rollout.prompt_index]
            pool = self._waiting if self._waits(problem) else self._pool
            if pool is not None and key not in self._pending and not self.vocabulary.count_unknown(rollout):
                self._pending[key] = pool.submit(problem, rollout.text)

    def finish(self, step: int, rollouts: Sequence[Rollout], problems: Mapping[int, Problem]) -> Scores:
        """The rewards of a step's rollouts; waits for them. Raises VerifierError naming the first failure if that ends the run."""
        started = time.monotonic()
        self.begin(rollouts, problems)
        verdicts = [self._verdict(rollout, problems[rollout.prompt_index]) for rollout in rollouts]
        for rollout in rollouts:
            self._pending.pop((rollout.prompt_index, rollout.text), None)
        self._report(step, rollouts, problems, verdicts)
        unknown = [self.vocabulary.count_unknown(rollout) for rollout in rollouts]
        self._warn_of_unknown(step, sum(map(bool, unknown)), len(rollouts))
        costs = [self._cost(rollout) for rollout in rollouts]
        return Scores(
            [verdict.score - cost for verdict, cost in zip(verdicts, costs, strict=True)],
            {
                **({} if self._max_tokens is None else {"reward/overlong": -math.fsum(costs) / len(costs)}),
                **part_means(verdicts),
                "reward/timeouts": sum(verdict.outcome == "limit" for verdict in verdicts),
                "reward/failures": sum(verdict.outcome == "failed" for verdict in verdicts),
                "rollout/unknown_tokens": sum(unknown),
            },
            time.monotonic() - started,
        )

    def close(self) -> None:
        """Ends the processes; safe to call twice."""
        self._waiting.close()
        if self._pool is not None:
            self._pool.close()

    def _verdict(self, rollout: Rollout, problem: Problem) -> Verdict:
        if self.vocabulary.count_unknown(rollout):
            return Verdict(0.0)
        if (rollout.prompt_index, rollout.text) not in self._pending:
            return judge(self.task, problem, rollout.text, passing=raised_by_signals())
        return self._pending[rollout.prompt_index, rollout.text].result()

    def _cost(self, rollout: Rollout) -> float:
        """What the length of a response takes off its reward; exactly 0 where it costs nothing."""
        if self._max_tokens is None:
            return 0.0
        buffer = self.reward.overlong_buffer
        return self.reward.overlong_penalty * max(0, len(rollout.response_ids) - (self._max_tokens - buffer)) / buffer

    def _warn_of_unknown(self, step: int, answers: int, of: int) -> None:
        if answers and not self._warned_of_unknown:
            self._warned_of_unknown = True
            logger.warning(
                "step %d: %d of %d answers hold ids that the tokenizer has no token for, the model's vocabulary being longer; scored 0 "
                "(said once; rollout/unknown_tokens counts them)",
                step + 1,
                answers,
                of,
            )

    def _report(self, step: int, rollouts: Sequence[Rollout], problems: Mapping[int, Problem], verdicts: Sequence[Verdict]) -> None:
        """One warning for each kind of answer that was not scored, or the end of the run."""
        unlike: dict[tuple[int, str], str] = {}
        for rollout, verdict in zip(rollouts, verdicts, strict=True):
            if verdict.outcome == "scored":
                continue
            named = f"step {step + 1}, prompt {rollout.prompt_index}{self._origin(problems[rollout.prompt_index])}, sample "
            named += f"{rollout.sample_index}: the verifier of task {self.cfg.name} "
            named += "was stopped, it " if verdict.outcome == "limit" else "failed: "
            named += f"{verdict.reason}; the answer ends in {rollout.text[-80:]!r}"
            if verdict.outcome == "failed" and self.reward.on_failure == "stop":
                raise VerifierError(f"{named} (reward.on_failure=stop)")
            unlike.setdefault((rollout.prompt_index, verdict.reason), named)
        for named in list(unlike.values())[:_NAMED]:
            logger.warning("%s; scored 0", named)
        if len(unlike) > _NAMED:
            logger.warning("step %d: %d more answers could not be verified; all scored 0", step + 1, len(unlike) - _NAMED)

    def _origin(self, problem: Problem) -> str:
        """Origin of the problem, as far as its data says."""
        if (source := problem.data.get("source")) is not None:
            return f" ({source}, row {problem.data.get('row')})"
        line = problem.data.get("line")
        return "" if line is None else f" ({self.cfg.options.get('path', 'file')}, line {line})"


def part_means(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """reward/part/NAME of each part: its mean over the answers that have it, which are those that such a verifier scored."""
    values: dict[str, list[float]] = {}
    for verdict in verdicts:
        for name, value in verdict.parts.items():
            values.setdefault(name, []).append(value)
    return {f"reward/part/{name}": math.fsum(found) / len(found) for name, found in sorted(values.items())}


def default_workers() -> int:
    """A quarter of the processor cores this process may use, 2 to 16: the ranks of the policy run beside them."""
    return min(16, max(2, len(os.sched_getaffinity(0)) // 4))
