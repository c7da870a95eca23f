"""Validation while a policy is trained: its answers to sets of problems, between two steps.

It happens when the engine has the weights of the step and generates nothing: what is generated ahead (rollout.max_staleness) has been
taken before those weights were sent, and the next steps are requested afterwards. So training draws the same numbers and waits for the
same weights with and without it. Samples depend on (set, problem, sample) and the weights alone.

    run_dir/validation/NAME/step-000010.json                   scores after 10 steps, problem by problem (set_scores.py)
    run_dir/validation/NAME/step-000010.safetensors.zst        all answers, as rollouts/ has them (rollout/record_layout.py)
    run_dir/validation/NAME/greedy/step-000010.safetensors.zst the greedy ones
"""

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path

from megatron_entropic.config import Config
from megatron_entropic.distributed.parallel import Parallel
from megatron_entropic.distributed.rank_zero import from_rank_zero, from_rank_zero_unless_stopped
from megatron_entropic.evaluation.answering import Judged, answer, sampling_engine
from megatron_entropic.evaluation.set_scores import SetScores, score_set
from megatron_entropic.evaluation.sets import OpenSet, open_set
from megatron_entropic.observability.metrics import read_metrics
from megatron_entropic.rollout.recording import RolloutWriter
from megatron_entropic.rollout.source import RolloutSource
from megatron_entropic.system.atomic_files import write_atomically
from megatron_entropic.system.folder_lock import Fence
from megatron_entropic.system.stop_signal import StopRequested

logger = logging.getLogger(__name__)

Metrics = dict[str, float]


class Validation:
    """Of one run; its calls are collective over all ranks, rank 0 does the work with the engine and scores of `source`."""

    def __init__(self, cfg: Config, parallel: Parallel, source: RolloutSource) -> None:
        self.cfg = cfg
        self.parallel = parallel
        self.source = source
        self._sets: list[OpenSet] = []
        self._before: Metrics = {}

    def due(self, done: int) -> bool:
        """Whether the policy is validated after `done` steps."""
        every = self.cfg.validation.every
        return bool(every) and done > 0 and (done % every == 0 or done == self.cfg.trainer.steps)

    def start(self, first_step: int) -> Metrics:
        """Validation before the first step where the settings want it, which the first step's metrics then name `start`.

        A resumed run does what a signal kept it from when it was stopped; returns the metrics that belong to the step before.
        Raises StopRequested.
        """
        if first_step:
            left_out = self.due(first_step) and not from_rank_zero(
                self.parallel, self._recorded, first_step, doing="metrics to be read"
            )
            return self._run(first_step) if left_out else {}
        if self.cfg.validation.at_start:
            scores = self._run(0)
            self._before = {f"validation/{each.name}/start": scores[f"validation/{each.name}/avg"] for each in self.cfg.validation.sets}
        return {}

    def run(self, done: int) -> Metrics:
        """The metrics of validation after `done` steps, equal on all ranks; nothing when it is not due, or when a signal breaks it off.

        That run is to stop; `start` makes up for it when it is resumed.
        """
        before, self._before = self._before, {}
        if not self.due(done):
            return before
        try:
            return before | self._run(done)
        except StopRequested:
            logger.info("validation after %d steps is left to the resumed run", done)
            return before

    def _run(self, done: int) -> Metrics:
        return from_rank_zero_unless_stopped(self.parallel, self._validate, done, doing=f"validation after {done} steps")

    def _recorded(self, done: int) -> bool:
        """Whether the metrics of the step before have this validation."""
        path = self.cfg.run_dir / "metrics.jsonl"
        lines = read_metrics(path) if path.is_file() else []
        last: Mapping[str, object] = next((line for line in reversed(lines) if line["step"] == done - 1), {})
        return all(f"validation/{each.name}/avg" in last for each in self.cfg.validation.sets)

    def _validate(self, done: int) -> Metrics:
        started = time.monotonic()
        engine = sampling_engine(self.source.pipeline.engine, self.cfg.rollout.engine)
        self._sets = self._sets or [open_set(self.cfg, settings) for settings in self.cfg.validation.sets]
        metrics: Metrics = {}
        for opened in self._sets:
            begun = time.monotonic()
            vocabulary = self.source.scorer.vocabulary
            answers = answer(engine, opened, self.cfg.reward, vocabulary, step=max(0, done - 1), answered=lambda count: None)
            scores = score_set(opened, answers)
            folder = self.cfg.run_dir / "validation" / opened.name
            self._record(folder, done, opened, answers.sampled)
            if answers.greedy is not None:
                self._record(folder / "greedy", done, opened, answers.greedy)
            write_scores(folder / f"step-{done:06d}.json", scores, {"step": done})
            metrics |= scores.metrics()
            logger.debug("validated on %s in %.1f s", opened.name, time.monotonic() - begun)
        return {**metrics, "time/validation_s": time.monotonic() - started}

    def _record(self, folder: Path, done: int, opened: OpenSet, judged: Judged) -> None:
        writer = RolloutWriter(folder, Fence.of_this_run(self.cfg.run_dir))
        try:
            writer.write(done, judged.rollouts, opened.problems, judged.rewards, judged.counts)
        finally:
            writer.close()


def write_scores(path: Path, scores: SetScores, about: Mapping[str, object]) -> None:
    """Writes a set's scores as JSON, atomically."""
    write_atomically(path, (json.dumps({**about, **scores.to_json()}, indent=1) + "\n").encode())
