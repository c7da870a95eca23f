"""Everything a run writes while it trains, apart from its rollouts: metrics, trackers, progress, and the final model."""

import logging
from collections.abc import Mapping, Sequence
from types import TracebackType

import torch

from megatron_entropic.checkpoint_files.kind import model_folder
from megatron_entropic.config import Config
from megatron_entropic.control import Controller
from megatron_entropic.distributed.parallel import Parallel
from megatron_entropic.hf.directory import read_companions
from megatron_entropic.hf.files import write_hf
from megatron_entropic.observability.memory_report import explain_out_of_memory, out_of_memory
from megatron_entropic.observability.metrics import MetricsWriter, MetricValue, read_metrics, truncate_after
from megatron_entropic.observability.outlets import Outlets
from megatron_entropic.observability.progress import ProgressBar
from megatron_entropic.observability.step_metrics import step_metrics
from megatron_entropic.observability.step_profiler import StepProfiler
from megatron_entropic.observability.step_timer import StepTimer
from megatron_entropic.observability.throughput import Throughput
from megatron_entropic.observability.trackers import TrackerGroup
from megatron_entropic.policy.engine import Policy
from megatron_entropic.policy.update_stats import UpdateStats
from megatron_entropic.policy.weights import weights_to_rank_zero
from megatron_entropic.rollout.source import RolloutSource
from megatron_entropic.rollout.types import NamedWeights, Rollout
from megatron_entropic.system.folder_lock import Fence

logger = logging.getLogger(__name__)


class RunOutput:
    """Writes a run's folder from rank 0, and tells its trackers; on the other ranks the same calls only time, and profile where asked.

    A context manager: leaving it with an error that says that memory ran out raises OutOfMemoryError instead.
    """

    def __init__(self, cfg: Config, parallel: Parallel) -> None:
        self.cfg = cfg
        self.parallel = parallel
        self.time = StepTimer()
        self._profiler = StepProfiler(cfg, parallel)
        self._policy: Policy | None = None
        self._throughput: Throughput | None = None
        self._fence = Fence.of_this_run(cfg.run_dir)
        self._metrics: MetricsWriter | None = None
        self._own = TrackerGroup([])
        self._outlets: Outlets | None = None
        # Read now: when the run ends the base model may have moved.
        self._companions = read_companions(model_folder(cfg.model.hf_path).hf_dir) if parallel.rank == 0 else {}

    def __enter__(self) -> "RunOutput":
        return self

    def start(self, first_step: int, tracker_ids: dict[str, str], policy: Policy, source: RolloutSource) -> None:
        """Opens everything for appending from `first_step` on; what a killed run wrote of later steps is removed.

        `tracker_ids`, what names the run at each tracker, are used where known and filled in. `policy`: whose memory is reported.
        """
        self._policy = policy
        self._throughput = Throughput(self.cfg, policy.arch)
        self._profiler.begin(first_step)
        if self.parallel.rank == 0:
            self._fence.check()
            path = self.cfg.run_dir / "metrics.jsonl"
            truncate_after(path, first_step - 1)
            metrics = MetricsWriter(path)
            if (metrics.last_step if metrics.last_step is not None else -1) != first_step - 1:
                raise ValueError(f"{path} ends at step {metrics.last_step}, but the checkpoint is of step {first_step - 1}")
            self._metrics = metrics
            history = read_metrics(path)
            progress = ProgressBar(self.cfg.trainer.steps, first_step=first_step)
            self._own = TrackerGroup([metrics, progress])
            self._outlets = Outlets(self.cfg, source, tracker_ids, history)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._profiler.close()
        self._close_trackers(error)
        if exhausted := out_of_memory(error):
            raise explain_out_of_memory(self.cfg, self.parallel, self._policy, exhausted) from error

    def _close_trackers(self, error: BaseException | None) -> None:
        """Closes them; what goes wrong then is no news when `error` has ended the run already."""
        try:
            if self._outlets is not None:
                self._outlets.close(error)
        finally:
            self._close_own(error)

    def _close_own(self, error: BaseException | None) -> None:
        try:
            self._own.close()
        except ExceptionGroup as errors:  # of a full disk, which has ended the run already
            if error is None:
                raise
            logger.debug("closing the trackers: %s", errors.exceptions)

    def record(
        self,
        step: int,
        rollouts: Sequence[Rollout],
        rewards: Sequence[float],
        updates: Sequence[UpdateStats],
        controller: Controller,
        scoring: Mapping[str, float],
    ) -> None:
        """Writes the metrics of a finished step; `scoring` holds those of its verification and of validation after it.

        Raises FolderOwnedError once another process has taken the run over.
        """
        self._profiler.end(step, self._policy)
        times = self.time.lap()
        if self.parallel.rank == 0:
            assert self._throughput is not None
            self._fence.check()
            metrics = step_metrics(self.cfg, step, rollouts, rewards, updates, controller, {**times, **scoring})
            metrics |= self._throughput.metrics(rollouts, times)
            self._own.log(step, metrics)
            if self._outlets is not None:
                self._outlets.log(step, metrics, rollouts, rewards)
        self._profiler.begin(step + 1)

    def complete(self, left_out: Mapping[str, MetricValue]) -> None:
        """Adds metrics of the step before the first one, which the run was stopped before; the trackers get that step again, whole."""
        if left_out and self._metrics is not None:
            self._fence.check()
            line = self._metrics.complete(left_out)
            if self._outlets is not None:
                self._outlets.complete(int(line["step"]), line)

    def export(self, policy: Policy) -> None:
        """Writes the policy's weights as a Hugging Face directory, run_dir/hf. Collective over all ranks.

        One is there already when a run is resumed that had come to its end.
        """
        if not self.cfg.trainer.export_hf:
            return
        out, source = self.cfg.run_dir / "hf", self._companions
        logger.info("writing the policy to %s", out)
        dtype = getattr(torch, self.cfg.model.dtype)

        def write(weights: NamedWeights) -> None:
            self._fence.check()
            write_hf(out, weights, source, dtype=dtype, replace=True)

        weights_to_rank_zero(self.parallel, policy.weights(), write, doing=f"the policy to be written to {out}")
