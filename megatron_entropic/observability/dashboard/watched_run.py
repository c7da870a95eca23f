"""A run as the dashboard sees it: how it stands, and its metrics, read as they are appended. The run's folder is only read."""

import json
import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_entropic.observability.history import read_history
from megatron_entropic.observability.report_samples import escaped
from megatron_entropic.observability.run_data import load_settings
from megatron_entropic.observability.run_warnings import RunWarning, read_warnings
from megatron_entropic.system.folder_lock import LEASE_S, FolderOwnedError, read_owner
from megatron_entropic.system.stop_signal import EXIT_STOPPED

NOT_STARTED, STARTING, RUNNING, FINISHED, STOPPED, FAILED, KILLED = (
    "not started",
    "starting",
    "running",
    "finished",
    "stopped, can be resumed",
    "failed",
    "killed",
)
OVER = (FINISHED, STOPPED, FAILED, KILLED)
RECENT = 20
"""Latest steps that the time still needed is estimated from."""


@dataclass
class WatchedRun:
    """The run in the folder `path`, which need not be there yet; `poll` brings everything up to date."""

    path: Path
    status: str = NOT_STARTED
    error: str | None = None
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[RunWarning] = field(default_factory=list)
    _read: int = 0
    _file: int = 0

    @property
    def name(self) -> str:
        """The run's name, or its folder's before there are settings."""
        return escaped(str(self.settings.get("run", {}).get("name") or self.path.resolve().name))

    @property
    def planned(self) -> int | None:
        """Steps of the whole run."""
        steps = self.settings.get("trainer", {}).get("steps")
        return steps if isinstance(steps, int) else None

    @property
    def done(self) -> int:
        """Steps done."""
        return int(self.metrics[-1]["step"]) + 1 if self.metrics else 0

    @property
    def steered_field(self) -> str:
        """The metric that the target is about."""
        return f"policy/{self.settings.get('control', {}).get('steer_by', 'entropy')}"

    @property
    def seconds_left(self) -> float | None:
        """Estimated from the median of the latest steps; None where nothing is known, or the run is over."""
        times = [float(line["time/step_s"]) for line in self.metrics[-RECENT:] if _is_number(line.get("time/step_s"))]
        if self.status != RUNNING or self.planned is None or not times:
            return None
        return statistics.median(times) * (self.planned - self.done)

    def column(self, name: str) -> list[float]:
        """A metric of every step; NaN where a step has none."""
        return [float(line[name]) if _is_number(line.get(name)) else math.nan for line in self.metrics]

    def latest(self, name: str) -> float | None:
        """A metric of the latest step that has it."""
        return next((float(line[name]) for line in reversed(self.metrics) if _is_number(line.get(name))), None)

    def poll(self) -> None:
        """Reads what is new. What is being written just now, or damaged, is left for the next time."""
        if not (self.path / "config.yaml").is_file():
            self.status, self.settings, self.metrics = NOT_STARTED, {}, []
            return
        try:
            self.settings = load_settings(self.path)
        except (OSError, ValueError):
            return
        self._read_metrics(self.path / "metrics.jsonl")
        self.warnings = read_warnings(self.path)
        self.status, self.error = self._standing()

    def _read_metrics(self, path: Path) -> None:
        if not path.is_file():
            self.metrics, self._read = [], 0
            return
        with path.open("rb") as file:
            status = path.stat()
            if status.st_ino != self._file or status.st_size < self._read:  # another run in this folder, or one resumed from before
                self.metrics, self._read, self._file = [], 0, status.st_ino
            file.seek(self._read)
            whole, _, _ = file.read().rpartition(b"\n")
        for line in whole.splitlines():
            self._add(line)
        self._read += len(whole) + 1 if whole else 0

    def _add(self, line: bytes) -> None:
        try:
            fields = json.loads(line)
        except ValueError:
            return
        if isinstance(fields, dict) and isinstance(fields.get("step"), int):
            while self.metrics and self.metrics[-1]["step"] >= fields["step"]:  # a resumed run does its steps again
                self.metrics.pop()
            self.metrics.append(fields)

    def _standing(self) -> tuple[str, str | None]:
        if self._is_owned():
            return RUNNING if self.metrics else STARTING, None
        starts = read_history(self.path)
        if not starts:  # of a version that kept no history
            return (FINISHED if self.metrics and self.done == self.planned else KILLED if self.metrics else NOT_STARTED), None
        code = starts[-1].code
        if code is None:
            return KILLED, "it ended without a word: SIGKILL, or its machine went down"
        if code == EXIT_STOPPED:
            return STOPPED, None
        return (FINISHED, None) if code == 0 else (FAILED, escaped(starts[-1].error or f"exit code {code}"))

    def _is_owned(self) -> bool:
        """Whether a process trains here: alive on this machine, or on another that gave a sign of life lately."""
        try:
            owner = read_owner(self.path)
        except (FolderOwnedError, OSError):
            return False
        if owner is None or not owner.held:
            return False
        alive = owner.process.is_alive()
        return time.time() - (self.path / ".owner.json").stat().st_mtime < LEASE_S if alive is None else alive


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
