"""Trackers: where a run's metrics, samples, validation and alerts go besides its folder.

tracker.py             what a tracker is, and what it may have
background.py          one tracker, driven in a thread of its own
opening.py             all of those of a run, as one
group.py               several in the caller's own thread, as one
delivered.py           which steps a tracker has taken, for resumed runs
tensorboard.py, weights_and_biases.py, mlflow_store.py
"""

from megatron_entropic.observability.trackers.group import TrackerGroup
from megatron_entropic.observability.trackers.opening import Trackers
from megatron_entropic.observability.trackers.tensorboard import TensorBoardTracker
from megatron_entropic.observability.trackers.tracker import Alert, FullTracker, RemoteTracker, SampleRow, Tracker

__all__ = ["Alert", "FullTracker", "RemoteTracker", "SampleRow", "TensorBoardTracker", "Tracker", "TrackerGroup", "Trackers"]
