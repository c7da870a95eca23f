"""torch's profiler over a window of steps: a Chrome trace a step and rank, and what holds memory in the last one."""

import logging
import os
from pathlib import Path
from typing import Any

import torch

from megatron_entropic import platform
from megatron_entropic.config import Config
from megatron_entropic.distributed.parallel import Parallel
from megatron_entropic.observability.memory_report import FOLDER, write_memory
from megatron_entropic.policy.engine import Policy

logger = logging.getLogger(__name__)

SNAPSHOT_EVENTS = 100_000
"""Allocations of the last step that a GPU's memory snapshot remembers."""


class StepProfiler:
    """Records the steps of `profile.steps` on the ranks of `profile.ranks`; elsewhere its calls do nothing.

    A trace that cannot be written, on a full disk, is a warning: a profile ends no run.
    """

    def __init__(self, cfg: Config, parallel: Parallel) -> None:
        self._cfg, self._parallel = cfg, parallel
        self._settings = cfg.profile
        self._folder = cfg.run_dir / FOLDER
        self._active = bool(cfg.profile.steps) and parallel.rank in cfg.profile.ranks
        self._profile: Any = None
        self._written = 0
        if cfg.profile.marks:
            platform.mark.switch(on=True)

    def begin(self, step: int) -> None:
        """Before `step` (from 0): starts to record it when it is in the window."""
        if not self._active or not self._settings.steps[0] <= step + 1 <= self._settings.steps[1]:
            return
        if self._is_last(step) and self._settings.memory and platform.accelerated():
            torch.cuda.memory._record_memory_history(max_entries=SNAPSHOT_EVENTS)
        activities = [torch.profiler.ProfilerActivity.CPU]
        activities += [torch.profiler.ProfilerActivity.CUDA] if platform.accelerated() else []
        platform.mark.switch(on=True)
        self._profile = torch.profiler.profile(activities=activities, record_shapes=True, with_stack=self._settings.stacks)
        self._profile.start()

    def end(self, step: int, policy: Policy | None) -> None:
        """After `step`: writes what was recorded of it."""
        if self._profile is None:
            return
        recorded = self._stop()
        try:
            self._write_trace(recorded, step + 1)
            if self._settings.memory and self._is_last(step):
                self._write_memory(step + 1, policy)
        except OSError as error:
            logger.warning("the profile of step %d could not be written, and no more is recorded: %s", step + 1, error)
            self._active = False

    def close(self) -> None:
        """Ends a recording that a failed step left open; safe to call twice."""
        if self._profile is not None:
            self._stop()
        if self._settings.marks and platform.mark.on:
            platform.mark.switch(on=False)

    def _stop(self) -> Any:
        recorded, self._profile = self._profile, None
        recorded.stop()
        platform.mark.switch(on=False)
        return recorded

    def _is_last(self, step: int) -> bool:
        return step + 1 == self._settings.steps[1]

    def _write_trace(self, recorded: Any, step: int) -> None:
        path = self._folder / f"trace-step-{step:06}-rank-{self._parallel.rank}.json.gz"
        temporary = path.with_name(f".{path.name}")  # torch compresses what ends in .gz
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            recorded.export_chrome_trace(str(temporary))
            size = temporary.stat().st_size
            if self._written + size > self._settings.max_trace_mb * 1e6:
                self._active = False
                logger.warning(
                    "the trace of step %d has %.3g MB, with those before more than profile.max_trace_mb=%g: it is not kept, and no "
                    "more is recorded; take fewer profile.steps, or a smaller batch",
                    *(step, size / 1e6, self._settings.max_trace_mb),
                )
                return
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        self._written += size
        logger.info("trace of step %d: %s (%.3g MB; open it at https://ui.perfetto.dev)", step, path, size / 1e6)

    def _write_memory(self, step: int, policy: Policy | None) -> None:
        logger.info("memory in step %d: %s", step, write_memory(self._cfg, self._parallel, policy, step))
        if platform.accelerated():
            path = self._folder / f"memory-step-{step:06}-rank-{self._parallel.rank}.pickle"
            _write_snapshot(path)
            logger.info("memory snapshot of step %d: %s (open it at https://pytorch.org/memory_viz)", step, path)


def _write_snapshot(path: Path) -> None:
    temporary = path.with_name(f".{path.name}")
    try:
        torch.cuda.memory._dump_snapshot(str(temporary))  # type: ignore[no-untyped-call]
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
        torch.cuda.memory._record_memory_history(enabled=None)
