"""Output of a run: metrics, trackers, progress, plots and the report.

plots.py and report.py import matplotlib and jinja2: import them where they are used, not from here.
"""

from megatron_entropic.observability.metrics import METRIC_FIELDS, MetricsWriter, MetricValue, read_metrics, truncate_after
from megatron_entropic.observability.progress import ProgressBar
from megatron_entropic.observability.trackers import TensorBoardTracker, Tracker, TrackerGroup, Trackers

__all__ = [
    "METRIC_FIELDS",
    "MetricValue",
    "MetricsWriter",
    "ProgressBar",
    "TensorBoardTracker",
    "Tracker",
    "TrackerGroup",
    "Trackers",
    "read_metrics",
    "truncate_after",
]
