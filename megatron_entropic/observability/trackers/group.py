"""Several trackers as one, in the caller's own thread: those that are the run's own, such as metrics.jsonl."""

from collections.abc import Mapping, Sequence

from megatron_entropic.observability.metrics import MetricValue
from megatron_entropic.observability.trackers.tracker import Tracker


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
