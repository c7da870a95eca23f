"""The trackers of a run: those that the settings ask for, each driven in the background, as one."""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from megatron_entropic.config import Config, TrackingConfig, TrainerConfig
from megatron_entropic.config.loading import to_dict
from megatron_entropic.config.schema import TRACKER_ENTRY_POINTS, TRACKERS
from megatron_entropic.config.secrets import without_secrets
from megatron_entropic.observability.metrics import MetricValue
from megatron_entropic.observability.trackers.background import BackgroundTracker
from megatron_entropic.observability.trackers.delivered import Delivered
from megatron_entropic.observability.trackers.tracker import Alert, RemoteTracker, SampleRow, TrackerRefusedError, validation_results
from megatron_entropic.system.named_functions import named_function
from megatron_entropic.system.outsider import made_outside
from megatron_entropic.system.stop_signal import stop_requested

START_S = 30.0
"""How long a run waits for its trackers to be ready before it trains without waiting."""
STOPPING_S = 5.0
"""The longest wait at the end of a run that was asked to stop: the time to save and end in is short."""


class Trackers:
    """All trackers of a run, on rank 0. Nothing here waits for one, but the start and `close`, each with a limit.

    Args:
        first_step: the step a resumed run starts with.
        ids: the run's id at each tracker, by name; used where known, and filled in as trackers say it.
        history: metrics of the steps before, of which a tracker of the package is given what it lacks.
    Raises:
        ReportedError for a tracker that cannot be opened before something is mended. One that fails otherwise is left out.
    """

    def __init__(
        self, cfg: Config, *, first_step: int = 0, ids: dict[str, str] | None = None, history: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        self._cfg = cfg
        self._ids = {} if ids is None else ids
        self.all = [self._driven(name, first_step, history) for name in tracker_names(cfg.trainer)]
        deadline = time.monotonic() + START_S
        for tracker in self.all:
            tracker.start()
        try:
            for tracker in self.all:
                tracker.wait_made(deadline)
        except BaseException:
            self.close()
            raise

    def log(self, step: int, metrics: Mapping[str, MetricValue]) -> None:
        """Hands over the metrics of `step`, and what they say of validation."""
        for tracker in self.all:
            tracker.log(step, dict(metrics))  # a copy: each reads it in its own time
        if results := validation_results(metrics):
            self._submit("log_validation", step, results)

    def log_samples(self, step: int, rows: Sequence[SampleRow]) -> None:
        """Hands over some rollouts of `step`."""
        self._submit("log_samples", step, rows)

    def log_alert(self, alert: Alert) -> None:
        """Hands over an alert."""
        self._submit("log_alert", alert)

    def log_summary(self, summary: Mapping[str, float | int | str]) -> None:
        """Hands over the end of the run."""
        self._submit("log_summary", summary)

    def close(self, until: float | None = None) -> None:
        """Waits for what is under way, until that time.monotonic() at most, by default not at all; safe to call twice."""
        for tracker in self.all:
            tracker.finish()
        for tracker in self.all:
            tracker.join(time.monotonic() if until is None else until)

    def drop(self) -> None:
        """Lets go of all of them at once and closes none: the run is another process's now, at each tracker too."""
        for tracker in self.all:
            tracker.drop()

    def _submit(self, method: str, *arguments: Any) -> None:
        for tracker in self.all:
            tracker.submit(method, *arguments)

    def _driven(self, name: str, first_step: int, history: Sequence[Mapping[str, Any]]) -> BackgroundTracker:
        run_id = self._ids.get(name)
        if name not in TRACKERS:
            make = partial(_outside, name, self._cfg.run_dir, run_id, first_step)
            driven = BackgroundTracker(name, make, room=self._cfg.tracking.queue, known=partial(self._ids.__setitem__, name))
            missed: Sequence[Mapping[str, Any]] = ()
        else:
            delivered = Delivered.of(self._cfg.run_dir, name)
            run_id = run_id or (delivered.run_id if first_step else None)
            missed = delivered.missed(history, known=run_id is not None)
            next_step = missed[0]["step"] if missed else first_step

            def known(made: str) -> None:
                self._ids[name] = made
                delivered.begin(made, next_step)

            kind = named_function("trainer.trackers", name, TRACKERS, TRACKER_ENTRY_POINTS)
            driven = BackgroundTracker(
                name,
                partial(kind, self._cfg.run_dir, run_id, first_step, self._cfg),
                room=self._cfg.tracking.queue + len(missed) + 1,
                known=known,
                delivered=delivered.took,
                abandon=getattr(kind, "abandon", None),
            )
        driven.submit("log_config", without_secrets(to_dict(self._cfg)))
        for line in missed:
            driven.submit("log", line["step"], line)
        return driven


def flush_limit(tracking: TrackingConfig) -> float:
    """How long, in seconds, the end of a run waits for trackers and alerts."""
    return tracking.flush_s if stop_requested() is None else min(tracking.flush_s, STOPPING_S)


def tracker_names(trainer: TrainerConfig) -> list[str]:
    """The trackers that the settings ask for, each once."""
    return list(dict.fromkeys([*(["tensorboard"] if trainer.tensorboard else []), *trainer.trackers]))


def _outside(name: str, run_dir: Path, run_id: str | None, first_step: int) -> RemoteTracker:
    """Raises TrackerRefusedError for a mistake in it."""
    try:
        make = named_function("trainer.trackers", name, TRACKERS, TRACKER_ENTRY_POINTS)
        made: RemoteTracker = made_outside(
            f"trainer.trackers={name}", make, run_dir, run_id, first_step, needs=("run_id", "log", "close")
        )
    except ValueError as error:
        raise TrackerRefusedError(str(error)) from error
    return made
