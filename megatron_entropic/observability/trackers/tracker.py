"""Destinations of a run's metrics: each is a Tracker, and the loop knows only that."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from megatron_entropic.errors import ReportedError
from megatron_entropic.observability.metrics import MetricValue


class TrackerRefusedError(ReportedError, ValueError):
    """A tracker cannot be opened before something is mended; the message names its setting and what to do."""


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
    the step it starts with, later ones of a killed run are to be hidden. It is made and called in a thread of its own, always the
    same one. It may also have the methods of FullTracker; those that it lacks are not called.
    """

    run_id: str


@dataclass(frozen=True)
class SampleRow:
    """One rollout of a table of samples; `length` in tokens."""

    prompt: str
    response: str
    reward: float
    length: int
    finish_reason: str


@dataclass(frozen=True)
class Alert:
    """Trouble that begins or is over. `kind` is a word; `step` counts from 0; `message` is one line that says what to do.

    `steps`: how many steps in a row it has lasted, 0 for what is not counted in steps.
    """

    kind: str
    state: Literal["begins", "over"]
    step: int
    steps: int
    message: str

    @property
    def title(self) -> str:
        """A few words."""
        return f"{self.kind.replace('_', ' ')} {'' if self.state == 'begins' else 'is over '}(step {self.step + 1})"


class FullTracker(RemoteTracker, Protocol):
    """All that a tracker may have. Each method but log and close is optional."""

    def log_config(self, settings: Mapping[str, Mapping[str, Any]]) -> None:
        """Takes the run's settings, by section and name, without secrets; before the first step, also of a resumed run."""
        ...

    def log_samples(self, step: int, rows: Sequence[SampleRow]) -> None:
        """Takes some of the rollouts of `step`, each tracking.samples_every steps; before that step's metrics."""
        ...

    def log_validation(self, step: int, results: Mapping[str, Mapping[str, float]]) -> None:
        """Takes the validation of `step`: by set, each measure; after that step's metrics, which hold it too."""
        ...

    def log_alert(self, alert: Alert) -> None:
        """Takes an alert, when it begins and when it is over."""
        ...

    def log_summary(self, summary: Mapping[str, float | int | str]) -> None:
        """Takes the end of the run: `status` is finished, stopped (to be resumed) or failed, the rest are last values."""
        ...

    def abandon(self) -> None:
        """Lets go of everything at once; called from another thread when `tracking.flush_s` has passed."""
        ...


VALIDATION = "validation/"
"""Metrics of validation: validation/SET/MEASURE."""


def validation_results(metrics: Mapping[str, MetricValue]) -> dict[str, dict[str, float]]:
    """The step's validation, by set and measure; empty for a step without one."""
    results: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        if name.startswith(VALIDATION) and value is not None and name.count("/") >= 2:
            validated, _, measure = name.removeprefix(VALIDATION).rpartition("/")
            results.setdefault(validated, {})[measure] = float(value)
    return results
