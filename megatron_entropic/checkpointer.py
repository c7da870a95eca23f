"""Training checkpoints: what a run needs to go on as if nothing had happened.

Every random number of a run depends on (seed, step, prompt, sample, weight version) alone, and prompts on (seed, step), so the
step is the state of all generators and of the dataset. What else there is: weights, optimizer and schedule, the controller.
"""

import logging
import time
from collections.abc import Iterator
from typing import Any

import torch.distributed as dist

from megatron_entropic.checkpoint_store import CheckpointStore, CheckpointStoreError
from megatron_entropic.config import Config
from megatron_entropic.config_loading import to_dict
from megatron_entropic.control import Controller
from megatron_entropic.hf.directory import read_companions
from megatron_entropic.policy.checkpoint import load_policy, save_policy
from megatron_entropic.policy.engine import Policy
from megatron_entropic.policy.parallel import Parallel
from megatron_entropic.rollout.shared_engine import from_rank_zero

logger = logging.getLogger(__name__)

FORMAT = 1
FREE_TO_CHANGE = ("run", "parallel", "checkpoint", "rollout", "control", "algorithm", "optimizer")
"""Sections that may differ on resume; a change is logged. Of the others only trainer.* but the seed may."""
FIXED = ("control.kind", "rollout.max_staleness")
"""Settings of those sections that may not: the saved state would not fit."""


class Checkpointer:
    """Saves and restores a run under run_dir/checkpoints. All methods are collective over the world."""

    def __init__(self, cfg: Config, parallel: Parallel) -> None:
        self.cfg = cfg
        self.parallel = parallel
        self.store = CheckpointStore(cfg.run_dir / "checkpoints")
        # Read now: at the save of a later day they may have moved, or be another model's.
        self._companions = read_companions(cfg.model.hf_dir) if parallel.rank == 0 and cfg.checkpoint.every else {}

    def restore(self, policy: Policy, controller: Controller) -> int:
        """Brings policy and controller to the latest checkpoint, if there is one; returns the steps done.

        Raises CheckpointStoreError for a damaged checkpoint or settings it does not fit, PolicyCheckpointError for its policy.
        """
        found = from_rank_zero(self.parallel, self._latest)
        if found is None:
            return 0
        folder, state = found
        load_policy(policy, folder, int(state["updates"]))
        controller.load_state_dict(state["controller"])
        logger.info("resumed from %s after %d steps", folder.parent, state["step"])
        return int(state["step"])

    def save(self, step: int, policy: Policy, controller: Controller) -> None:
        """Saves after `step` steps when `checkpoint.every` says so, and at the end of the run."""
        every = self.cfg.checkpoint.every
        if not every or (step % every and step != self.cfg.trainer.steps):
            return
        start = time.monotonic()
        partial = from_rank_zero(self.parallel, self.store.begin, step, self._companions)
        save_policy(policy, partial / "policy")
        dist.barrier()
        state = {
            "format": FORMAT,
            "step": step,
            "updates": policy.updates,
            "controller": controller.state_dict(),
            "settings": to_dict(self.cfg),
        }
        final = from_rank_zero(self.parallel, self.store.publish, partial, state, self.cfg.checkpoint.keep)
        logger.info("checkpoint %s (%.1f s)", final, time.monotonic() - start)

    def _latest(self) -> tuple[Any, dict[str, Any]] | None:
        name = self.store.latest()
        if name is None:
            return None
        folder, state = self.store.read(name)
        if state.get("format") != FORMAT:
            raise CheckpointStoreError(f"{folder.parent}: checkpoint format {state.get('format')}; this version reads {FORMAT}")
        refused = []
        for setting, saved, now in _differences(state["settings"], to_dict(self.cfg)):
            free = setting.split(".")[0] in FREE_TO_CHANGE and setting not in FIXED
            free = free or (setting.startswith("trainer.") and setting != "trainer.seed")
            if not free:
                refused.append(f"{setting}: saved with {saved!r}, now {now!r}")
            elif not setting.startswith("run."):
                logger.info("%s changed from %r to %r", setting, saved, now)
        if refused:
            raise CheckpointStoreError(f"{folder.parent}: was made with other settings: " + "; ".join(refused))
        return folder, state


def _differences(saved: dict[str, Any], now: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for section in sorted(saved.keys() | now.keys()):
        before, after = saved.get(section, {}), now.get(section, {})
        for field in sorted(before.keys() | after.keys()):
            if before.get(field) != after.get(field):
                yield f"{section}.{field}", before.get(field), after.get(field)
