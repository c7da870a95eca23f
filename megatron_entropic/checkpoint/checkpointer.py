"""Training checkpoints: what a run needs to resume as if nothing had happened, saved while it trains on.

Every random number of a run depends on (seed, step, prompt, sample, weight version) alone, and prompts on (seed, step), so the
step is the state of all generators and of the data, unless a curriculum chooses among them. What else there is: weights, optimizer and
schedule, the controller, the curriculum, and under which names the trackers know the run. How one is found and read again: restore.py.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_entropic.checkpoint.best import BestCheckpoint
from megatron_entropic.checkpoint.policy_state import PolicyCheckpointError, load_policy
from megatron_entropic.checkpoint.policy_writer import PolicyWriter, Written
from megatron_entropic.checkpoint.restore import FORMAT, find_checkpoint
from megatron_entropic.checkpoint_files.kind import model_folder
from megatron_entropic.checkpoint_files.store import POLICY, CheckpointStore, CheckpointStoreError, name_of
from megatron_entropic.config import Config
from megatron_entropic.config.loading import to_dict
from megatron_entropic.config.secrets import without_secrets
from megatron_entropic.control import Controller
from megatron_entropic.distributed.parallel import Parallel
from megatron_entropic.distributed.rank_zero import from_rank_zero, meet
from megatron_entropic.hf.directory import read_companions
from megatron_entropic.policy.engine import Policy
from megatron_entropic.system.folder_lock import Fence
from megatron_entropic.system.stop_signal import StopRequested, stop_requested

logger = logging.getLogger(__name__)

POLL_S = 0.1
NOTHING: Mapping[str, float] = {}


@dataclass(frozen=True)
class _Saving:
    """A checkpoint being written: the steps done at it, its folder by now, its writer, seconds that the copy held training up.

    `best`: of all so far, by validation.best.
    """

    step: int
    partial: Path
    writer: PolicyWriter
    held_up_s: float
    best: bool


class Checkpointer:
    """Saves and restores a run under run_dir/checkpoints. All methods are collective over the world."""

    def __init__(
        self,
        cfg: Config,
        parallel: Parallel,
        *,
        allow_fallback: bool = False,
        allow_change: bool = False,
        recorded: Callable[[], None] = lambda: None,
        data_state: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        self.cfg = cfg
        self.parallel = parallel
        self.allow_fallback = allow_fallback
        self.allow_change = allow_change
        self._recorded = recorded
        self._data_state = data_state
        self.data: dict[str, Any] = {}
        """State of the data (RolloutSource.data_state) at the checkpoint that was restored."""
        self.store = CheckpointStore(cfg.run_dir / "checkpoints", Fence.of_this_run(cfg.run_dir))
        self.trackers: dict[str, str] = {}
        """The run's id at each tracker; filled by whoever opens them, saved with every checkpoint."""
        # Read now: at the save of a later day they may have moved, or be another model's.
        self._companions = read_companions(model_folder(cfg.model.hf_path).hf_dir) if parallel.rank == 0 else {}
        self._found: tuple[Path, dict[str, Any]] | None = None
        self._best = BestCheckpoint(cfg, parallel, self.store)
        self._saving: _Saving | None = None
        self._saved_step = 0
        """Steps done at the newest checkpoint, whole or being written. Before the first step there is nothing to save."""

    def find(self) -> bool:
        """Whether there is a checkpoint to resume from: the latest.

        When it is damaged and `allow_fallback`, the newest intact one before it. Raises CheckpointStoreError for a damaged checkpoint,
        SettingsDifferenceError for settings it does not fit.
        """
        self._found = find_checkpoint(
            self.cfg, self.parallel, self.store, allow_fallback=self.allow_fallback, allow_change=self.allow_change
        )
        return self._found is not None

    def restore(self, policy: Policy, controller: Controller) -> int:
        """Brings policy and controller to the checkpoint that `find` found, if it did; returns the steps done.

        A controller of another kind than the saved one starts without a past. Raises PolicyCheckpointError for the policy.
        """
        if self._found is None:
            return 0
        folder, state = self._found
        load_policy(policy, folder / POLICY, int(state["updates"]), state.get("response"))
        if state["settings"]["control"]["kind"] == self.cfg.control.kind:
            controller.load_state_dict(state["controller"])
        self.trackers.update(state.get("trackers", {}))
        self.data = state.get("data", {})
        self._saved_step = int(state["step"])
        self._best.restore(self._saved_step)
        logger.info("resumed from %s after %d steps", folder, self._saved_step)
        return self._saved_step

    def complete(self, step: int, left_out: Mapping[str, float]) -> None:
        """Takes the validation that a stopped run left out after the `step` steps which it was resumed from."""
        if self._best.takes(left_out):
            from_rank_zero(self.parallel, self.store.point_best_to, name_of(step), doing="the best checkpoint to be named")

    def save(self, step: int, policy: Policy, controller: Controller, validated: Mapping[str, float] = NOTHING) -> None:
        """To be called after each step, `step` of them done: saves when `checkpoint.every` or a signal says so, and at the end; also
        when the policy is the best so far by what was `validated`, equal on all ranks.

        Training may continue as soon as the state is copied; the checkpoint appears at the end of a later step. That of the last
        step, or of a run that is to stop, is waited for. Raises StopRequested then, on all ranks, and for what prevents saving
        CheckpointStoreError or PolicyCheckpointError naming the file on rank 0, RankZeroError on the others.
        """
        every, last = self.cfg.checkpoint.every, step == self.cfg.trainer.steps
        best, stop = self._best.takes(validated), self._meet()
        if stop or best or (every and (last or step % every == 0)):
            self._begin(step, policy, controller, best=best)
        if stop or last or not self.cfg.checkpoint.asynchronous:
            self._complete()
        if stop:
            self._report_stop(step)

    @contextmanager
    def saving_if_stopped(self, step: int, policy: Policy, controller: Controller) -> Iterator[None]:
        """For what happens at the beginning of a step, `step` of them done: when a signal ends it, that state is saved."""
        try:
            yield
            stop = self._meet()
        except StopRequested:
            stop = True
        if stop:
            self._begin(step, policy, controller)
            self._complete()
            self._report_stop(step)

    def _meet(self) -> bool:
        """Publishes what is written by now; returns whether any rank is to stop. Collectives: one all-reduce of 16 bytes.

        It begins when all ranks are there: rank 0 may have been busy with its trackers.
        """
        meet(self.parallel, "what rank 0 writes of a step")
        writing = self._saving is not None and not self._saving.writer.done
        flags = torch.tensor([stop_requested() is not None, writing], dtype=torch.int64, device=self.parallel.device)
        dist.all_reduce(flags)
        stop, writing = map(bool, flags.tolist())
        if self._saving is not None and not writing:
            self._publish(self._saving)
        return stop

    def _begin(self, step: int, policy: Policy, controller: Controller, *, best: bool = False) -> None:
        """Copies the state and begins to write it, once the checkpoint before is complete."""
        if step == self._saved_step:
            return
        self._complete()
        start = time.monotonic()
        state = {
            "format": FORMAT,
            "step": step,
            "updates": policy.updates,
            "response": policy.response.state(),
            "controller": controller.state_dict(),
            "trackers": self.trackers,
            "data": self._data_state(),
            "settings": without_secrets(to_dict(self.cfg)),
        }
        partial = from_rank_zero(
            self.parallel, self._named, self.store.begin, step, state, self._companions, doing="the checkpoint's folder to be made"
        )
        writer = PolicyWriter(policy, partial / POLICY)
        writer.start()
        self._saving = _Saving(step, partial, writer, time.monotonic() - start, best)
        self._saved_step = step

    def _complete(self) -> None:
        """Waits until the checkpoint being written is published. Ranks meet again and again: none waits long in a collective."""
        while self._saving is not None:
            self._meet()
            if self._saving is not None:
                time.sleep(POLL_S)

    def _publish(self, saving: _Saving) -> None:
        """Makes the checkpoint that all ranks have written the latest. Collectives: one gather, one broadcast."""
        self._saving = None
        ranks: list[Any] | None = [None] * self.parallel.world_size if self.parallel.rank == 0 else None
        dist.gather_object(saving.writer.written, ranks)
        from_rank_zero(self.parallel, self._named, self._publish_on_rank_zero, saving, ranks, doing="the checkpoint to be published")

    def _publish_on_rank_zero(self, saving: _Saving, ranks: list[Written]) -> None:
        if failed := [f"rank {written.rank}: {written.error}" for written in ranks if written.error]:
            self.store.discard(saving.partial)
            raise PolicyCheckpointError("the checkpoint cannot be written; those before it hold: " + "; ".join(failed))
        self._recorded()
        final = self.store.publish(saving.partial, saving.writer.finish(ranks), self.cfg.checkpoint.keep, best=saving.best)
        slowest_s = max(written.seconds for written in ranks)
        logger.info("checkpoint %s (copied in %.2f s, written in %.2f s)", final, saving.held_up_s, slowest_s)

    def _named(self, function: Any, *args: Any) -> Any:
        """Calls `function`, naming the folder in errors of the operating system that may not (disk full)."""
        try:
            return function(*args)
        except OSError as error:
            raise CheckpointStoreError(
                f"{self.store.folder}: the checkpoint cannot be written; those before it hold: {error}"
            ) from error

    def _report_stop(self, step: int) -> None:
        saved = f"everything is in {self.store.folder}" if step else "nothing was trained yet"
        raise StopRequested(f"asked to stop after {step} steps; {saved}")
