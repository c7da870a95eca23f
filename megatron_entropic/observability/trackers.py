"""Destinations of a step's metrics: each is a Tracker, and the loop knows only that."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from megatron_entropic.config import TrainerConfig
from megatron_entropic.config.schema import TRACKER_ENTRY_POINTS, TRACKERS
from megatron_entropic.observability.metrics import MetricValue
from megatron_entropic.system.atomic_files import naming
from megatron_entropic.system.named_functions import named_function
from megatron_entropic.system.outsider import made_outside


class Tracker(Protocol):
    """A destination of metrics, driven by one process (rank 0)."""

    def log(self, step: int, metrics: Mapping[str, MetricValue]) -> None:
        """Takes the metrics of `step`; steps come in ascending order."""
        ...

    def close(self) -> None:
        """Flushes and releases everything; safe to call twice."""
        ...


class RemoteTracker(Tracker, Protocol):
    """A Tracker whose destination knows the run by `run_id`, which a resumed run must use again.

    `make(run_dir, run_id, first_step)` of the table TRACKERS makes one: `run_id` is that of before, None for a new run; `first_step`
    the step it starts with, later ones of a killed run are to be hidden.
    """

    run_id: str


class TensorBoardTracker:
    """Scalars for TensorBoard under run_dir/`run_id`. `first_step` hides what a killed run logged from that step on."""

    def __init__(self, run_dir: str | os.PathLike[str], run_id: str | None = None, first_step: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter  # here: it takes seconds to import and rank 0 alone needs it

        self.run_id = run_id or "logs/tensorboard"
        self._folder = Path(run_dir) / self.run_id
        self._writer = SummaryWriter(str(self._folder), purge_step=first_step if first_step > 0 else None)

    def log(self, step: int, metrics: Mapping[str, MetricValue]) -> None:
        with naming(self._folder):
            for name, value in metrics.items():
                if name != "step" and value is not None and math.isfinite(value):
                    self._writer.add_scalar(name, value, step)
            self._writer.flush()

    def close(self) -> None:
        with naming(self._folder):
            self._writer.close()


class TrackerGroup:
    """Several trackers as one, called in order; closing closes all of them, whatever one of them raises."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self.trackers = tuple(trackers)

    def log(self, step: int, metrics: Mapping[str, MetricValue]) -> None:
        for tracker in self.trackers:
            tracker.log(step, metrics)

    def close(self) -> None:
        errors = []
        for tracker in self.trackers:
            try:
                tracker.close()
            except Exception as error:  # noqa: BLE001  re-raised below, once the others are closed
                errors.append(error)
        if errors:
            raise ExceptionGroup("closing the trackers failed", errors)


def make_trackers(
    run_dir: str | os.PathLike[str], trainer_cfg: TrainerConfig, *, first_step: int = 0, known_ids: Mapping[str, str] | None = None
) -> dict[str, RemoteTracker]:
    """The trackers the settings ask for, by name; metrics.jsonl (MetricsWriter) and the progress bar are the caller's to add.

    `first_step` is the step a resumed run starts with, `known_ids` under which run_id each tracker, by name, has its earlier steps.
    """
    names = list(dict.fromkeys([*(["tensorboard"] if trainer_cfg.tensorboard else []), *trainer_cfg.trackers]))
    return {name: _make_tracker(name, Path(run_dir), (known_ids or {}).get(name), first_step) for name in names}


def _make_tracker(name: str, run_dir: Path, run_id: str | None, first_step: int) -> RemoteTracker:
    make = named_function("trainer.trackers", name, TRACKERS, TRACKER_ENTRY_POINTS)
    if name in TRACKERS:
        known: RemoteTracker = make(run_dir, run_id, first_step)
        return known
    place = f"trainer.trackers={name}"
    tracker: RemoteTracker = made_outside(place, make, run_dir, run_id, first_step, needs=("run_id", "log", "close"))
    return tracker
