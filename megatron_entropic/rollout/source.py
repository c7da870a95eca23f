"""Source of the trainer's experience: prompts, an engine on rank 0, the verifier, and the record of it all."""

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any

from megatron_entropic.config import Config
from megatron_entropic.config.rollout import ENGINE_ENTRY_POINTS, ENGINES
from megatron_entropic.distributed.parallel import Parallel
from megatron_entropic.distributed.rank_zero import from_rank_zero, from_rank_zero_unless_stopped
from megatron_entropic.errors import ReportedError
from megatron_entropic.policy.engine import Policy
from megatron_entropic.policy.update_stats import UpdateStats
from megatron_entropic.policy.weights import weights_to_rank_zero
from megatron_entropic.rollout.pipeline import GenerationPipeline, steps_from_version
from megatron_entropic.rollout.prompts import make_stream
from megatron_entropic.rollout.recording import RolloutWriter, read_counts, read_rollouts
from megatron_entropic.rollout.sampling_record import record_sampling
from megatron_entropic.rollout.scoring import Scorer
from megatron_entropic.rollout.token_recording import TokenWriter, forget_tokens
from megatron_entropic.rollout.types import ENGINE_PARTS, MetricsServer, NamedWeights, Rollout, RolloutEngine, RolloutError
from megatron_entropic.rollout.vocabulary import Vocabulary
from megatron_entropic.system.folder_lock import Fence
from megatron_entropic.system.many_imports import many_imports
from megatron_entropic.system.named_functions import named_function
from megatron_entropic.system.outsider import made_outside
from megatron_entropic.system.stop_signal import stop_requested
from megatron_entropic.tasks import make_task
from megatron_entropic.tasks.data import DataTask
from megatron_entropic.tasks.data.curriculum import Curriculum
from megatron_entropic.tasks.task import Problem, Task
from megatron_entropic.tasks.verifiers.verdict_cache import FOLDER_VARIABLE as VERDICTS

logger = logging.getLogger(__name__)


class RolloutSource:
    """Experience of each step. Rank 0 owns the engine, scores, and records to run_dir/rollouts.

    A context manager: leaving it ends the engine and every process it started.
    """

    def __init__(self, cfg: Config, parallel: Parallel) -> None:
        self.cfg = cfg
        self.task: Task | None = None
        self.parallel = parallel
        self._pipeline: GenerationPipeline | None = None
        self._scorer: Scorer | None = None
        self._writer: RolloutWriter | None = None
        self._token_writer: TokenWriter | None = None
        self._score_metrics: dict[int, dict[str, float]] = {}
        self._problems: dict[int, Mapping[int, Problem]] = {}
        self._curriculum: Curriculum | None = None
        self._experience: dict[int, tuple[list[Rollout], list[float]]] = {}

    def __enter__(self) -> "RolloutSource":
        try:
            from_rank_zero(self.parallel, self._open, doing="the engine, task and tokenizer to be opened")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.close()
        except (ReportedError, ValueError) as lost:
            if error is None:
                raise
            logger.error("when the run ended: %s", lost)

    def close(self) -> None:
        """Ends the engine and every process it started, once all that was generated is recorded. Raises what kept it from that."""
        if self._pipeline is not None:
            self._pipeline.close()
        if self._scorer is not None:
            self._scorer.close()
        try:
            if self._writer is not None:
                self._writer.close()
        finally:
            if self._token_writer is not None:
                self._token_writer.close()

    def _open(self) -> None:
        self._opened = time.monotonic()
        engine = make_engine(self.cfg)  # first: servers start while the rest is read
        background = engine.in_background and self.cfg.rollout.max_staleness > 0
        self._pipeline = GenerationPipeline(engine, self.cfg.batch.samples_per_prompt, background=background)
        os.environ[VERDICTS] = str(self.cfg.run_dir.absolute() / "verdicts")
        self.task = make_task(self.cfg.task, self.cfg.trainer.seed, self.cfg.data)
        self._curriculum = Curriculum(self.cfg.data, self.cfg.trainer.seed) if self.cfg.data.curriculum else None
        self.prompts = make_stream(self.cfg, self.task, prompts_per_step=self.cfg.batch.prompts_per_step, curriculum=self._curriculum)
        vocabulary = Vocabulary(self.prompts.encoder.tokenizer)
        self._scorer = Scorer(
            self.task, self.cfg.task, self.cfg.trainer.seed, self.cfg.reward, vocabulary, max_tokens=self.cfg.rollout.max_new_tokens
        )
        folder, fence = self.cfg.run_dir / "rollouts", Fence.of_this_run(self.cfg.run_dir)
        self._writer, self._token_writer = RolloutWriter(folder, fence), TokenWriter(folder, fence)

    @property
    def pipeline(self) -> GenerationPipeline:
        """Rank 0's, once the source is open."""
        assert self._pipeline is not None
        return self._pipeline

    @property
    def scorer(self) -> Scorer:
        """Rank 0's, once the source is open."""
        assert self._scorer is not None
        return self._scorer

    @property
    def writer(self) -> RolloutWriter:
        """Rank 0's, once the source is open."""
        assert self._writer is not None
        return self._writer

    def metrics_servers(self) -> Sequence[MetricsServer]:
        """The engine's servers that are ready to be asked for metrics; none for an engine without servers."""
        return () if self._pipeline is None else getattr(self._pipeline.engine, "metrics_servers", ())

    def prompt_text(self, rollout: Rollout) -> str:
        """The prompt of a rollout as the policy saw it. Rank 0's, once the source is open."""
        return self.prompts.encoder.tokenizer.decode(
            rollout.prompt_ids.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    def recorded(self) -> None:
        """Returns once all that was collected and generated is on the disk. Raises on rank 0 what kept it from there; else no-op."""
        if self._writer is not None and self._token_writer is not None:
            self._writer.wait()
            self._token_writer.wait()

    def record_tokens(self, step: int, rollouts: Sequence[Rollout], updates: Sequence[UpdateStats]) -> None:
        """Has the values of the step's response tokens recorded while training continues, where `rollout.record_tokens` asked."""
        if self._token_writer is not None and all(update.tokens is not None for update in updates):
            self._token_writer.begin(step, rollouts, updates)

    def score_metrics(self, step: int) -> dict[str, float]:
        """Time and counts of scoring `step` (observability/metrics.py), once; empty on other ranks.

        Of a step that was read back, as a resumed run does, only what it counted.
        """
        return self._score_metrics.pop(step, {})

    def data_state(self) -> dict[str, Any]:
        """What a resumed run needs of the data beside its step, on rank 0: the curriculum's state, and each source's rows, to compare.

        It is that of the last `sync_weights`, before the prompts were chosen that came after: a resumed run chooses them again.
        """
        if self._curriculum is None and not self._rows():
            return {}
        return {"rows": self._rows(), "curriculum": self._curriculum and self._curriculum.state_dict()}

    def _rows(self) -> list[int]:
        """Rows of each source of the data task; empty for other tasks, and on other ranks."""
        return [len(rows) for rows in self.task.sources] if isinstance(self.task, DataTask) else []

    def _restore_data(self, state: Mapping[str, Any], first_step: int) -> None:
        if state.get("rows") and self._rows() and state["rows"] != self._rows():
            logger.warning(
                "WARNING: the sources of data.train had %s rows at the checkpoint, and have %s now: other prompts from here on",
                state["rows"],
                self._rows(),
            )
        if self._curriculum is not None:
            self._curriculum.load_state_dict(dict(state.get("curriculum") or self._fresh_state(first_step)))

    def start(self, policy: Policy, first_step: int = 0, data_state: Mapping[str, Any] | None = None) -> None:
        """Waits until the engine can generate, and gives it the policy's weights, version `first_step`. Collective over all ranks.

        `data_state` is what `data_state` gave when the checkpoint was saved.

        Apart from opening the source so that servers start while the policy is read. A resumed run starts with the step
        after its checkpoint; what was generated ahead of that is read back from its record, not generated again. Raises
        StopRequested on every rank when rank 0 is asked to stop. `request` comes next.
        """
        if first_step:
            self._restore_data(data_state or {}, first_step)
        from_rank_zero_unless_stopped(self.parallel, self._wait_for_servers, first_step, doing="the engine to be ready")
        self.sync_weights(policy, version=first_step)

    def _fresh_state(self, first_step: int) -> dict[str, Any]:
        """That of a curriculum which begins with a resumed run: nothing is known, and draws go on where they were."""
        fresh = Curriculum(self.cfg.data, self.cfg.trainer.seed).state_dict()
        return {**fresh, "drawn": (first_step + self.cfg.rollout.max_staleness) * self.cfg.batch.prompts_per_step}

    def _wait_for_servers(self, first_step: int) -> None:
        record_sampling(self.cfg.run_dir, self.cfg.model, self.cfg.rollout, first_step)
        forget_tokens(self.writer.folder, first_step)
        ahead = range(first_step, min(first_step + self.cfg.rollout.max_staleness, self.cfg.trainer.steps)) if first_step else range(0)
        for step in ahead:
            records = read_rollouts(self.writer.folder, step)
            self._experience[step] = [record.rollout for record in records], [record.reward for record in records]
            self._score_metrics[step] = dict(read_counts(self.writer.folder, step))
        engine = self.pipeline.engine
        if first_step:
            engine.seek(first_step + len(ahead))
        engine.start()
        if engine.in_background:
            logger.info("servers ready after %.0f s", time.monotonic() - self._opened)

    def collect(self, step: int) -> tuple[list[Rollout], list[float]]:
        """The rollouts of `step` (by prompt, then sample) and their rewards, on rank 0, once only; nothing on the others.

        They come from weight version max(0, step - rollout.max_staleness). Raises RolloutError, and StopRequested on every
        rank when rank 0 is asked to stop meanwhile.
        """
        from_rank_zero_unless_stopped(self.parallel, self._collect, step, doing=f"the rollouts of step {step}")
        return self._experience.pop(step, ([], []))

    def _collect(self, step: int) -> None:
        if step not in self._experience:
            self._finish(step)

    def sync_weights(self, policy: Policy, version: int) -> None:
        """Makes the engine sample from the policy's present weights, as `version`. Collective over all ranks.

        Waits for the generation under way first, and records what it gave. Nothing is generated from then until `request`. Raises
        RolloutError, on every rank, when that generation or the update failed.
        """

        def send(weights: NamedWeights) -> None:
            for step in self.pipeline.requested:
                self._finish(step)
            if self._curriculum is not None:
                self._curriculum.settle()
            logger.debug("weights of version %d: sync begins", version)
            try:
                self.pipeline.engine.sync_weights(weights, version)
            except RolloutError as error:
                # The signal may have reached the servers too; without batches ahead they are not needed for what is saved.
                if stop_requested() is None or self.cfg.rollout.max_staleness:
                    raise
                logger.warning("no longer needed, because the run is to stop: %s", error)

        weights_to_rank_zero(self.parallel, policy.weights(), send, doing=f"the engine to take the weights of version {version}")

    def request(self, version: int) -> None:
        """Has the steps generated that are to come from weights of `version`, which the engine has; does not wait for them."""
        from_rank_zero(self.parallel, self._request_steps, version, doing=f"the prompts of version {version} to be made")

    def _request_steps(self, version: int) -> None:
        for step in steps_from_version(version, max_staleness=self.cfg.rollout.max_staleness, steps=self.cfg.trainer.steps):
            prompts, self._problems[step] = self.prompts.step(step)
            self.pipeline.request(step, prompts, partial(self.scorer.begin, problems=self._problems[step]))

    def _finish(self, step: int) -> None:
        """Waits for the rollouts of `step` and their scores, and has them recorded while training continues."""
        rollouts, problems = self.pipeline.take(step), self._problems.pop(step)
        scores = self.scorer.finish(step, rollouts, problems)
        self.writer.begin(step, rollouts, problems, scores.rewards, scores.counts)
        self._experience[step] = (rollouts, scores.rewards)
        self._score_metrics[step] = scores.metrics
        if self._curriculum is not None:
            samples = self.cfg.batch.samples_per_prompt
            for number, problem in enumerate(problems.values()):  # rollouts are ordered by prompt, then sample
                self._curriculum.measured(problem, scores.rewards[number * samples : (number + 1) * samples])


def make_engine(cfg: Config) -> RolloutEngine:
    """The engine that `rollout.engine` names; servers are launched, not waited for. Raises RolloutError, ValueError."""
    name = cfg.rollout.engine
    with many_imports():
        make: Callable[[Config], RolloutEngine] = named_function("rollout.engine", name, ENGINES, ENGINE_ENTRY_POINTS)
    if name in ENGINES:
        return make(cfg)
    engine: RolloutEngine = made_outside(f"rollout.engine={name}", make, cfg, needs=ENGINE_PARTS)
    return engine
