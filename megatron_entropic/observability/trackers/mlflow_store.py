"""MLflow: metrics, settings as parameters, samples as files, alerts as tags; in a folder, a database or at a server."""

import math
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megatron_entropic.config import Config
from megatron_entropic.config.tracking import mlflow_uri
from megatron_entropic.observability.metrics import MetricValue
from megatron_entropic.observability.trackers.tracker import Alert, SampleRow

_ODD = re.compile(r"[^\w\-. /:]")
"""What MLflow takes in no name."""
_PARAMETERS = 100
"""Of one request."""
_LONGEST = 5000
_STATUS = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
FILE_STORE_VARIABLE = "MLFLOW_ALLOW_FILE_STORE"
"""Without it MLflow refuses folders."""


class MLflowTracker:
    """A run at MLflow, by its client alone. A resumed one has the same id.

    MLflow forgets nothing: of steps that are trained again it has both values, and shows the later one as the latest.
    """

    def __init__(self, run_dir: str | os.PathLike[str], run_id: str | None, first_step: int, cfg: Config) -> None:
        """Raises MLflow's own errors."""
        uri = mlflow_uri(cfg.tracking, Path(run_dir))
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        if is_folder(uri):
            os.environ.setdefault(FILE_STORE_VARIABLE, "true")
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri=uri)
        self._first_step = first_step
        self._status = "FAILED"
        self._open = True
        if run_id is not None:
            self._client.update_run(run_id, status="RUNNING", name=cfg.run.name)
            self._client.set_tag(run_id, "resumed_from_step", str(first_step))
        self.run_id: str = run_id or self._new_run(cfg)

    def _new_run(self, cfg: Config) -> str:
        from mlflow.exceptions import MlflowException

        name = cfg.tracking.mlflow_experiment
        experiment = self._client.get_experiment_by_name(name)
        try:
            number = experiment.experiment_id if experiment is not None else self._client.create_experiment(name)
        except MlflowException:  # another run has made it meanwhile
            if (experiment := self._client.get_experiment_by_name(name)) is None:
                raise
            number = experiment.experiment_id
        return str(self._client.create_run(number, run_name=cfg.run.name).info.run_id)

    def log(self, step: int, metrics: Mapping[str, MetricValue]) -> None:
        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000
        finite = [
            Metric(_named(name), value, now, step)
            for name, value in metrics.items()
            if name != "step" and value is not None and math.isfinite(value)
        ]
        self._client.log_batch(self.run_id, metrics=finite)

    def log_config(self, settings: Mapping[str, Mapping[str, Any]]) -> None:
        """Parameters never change at MLflow: what a resumed run has otherwise is a tag."""
        from mlflow.entities import Param, RunTag

        known = self._client.get_run(self.run_id).data.params
        now = dict(_flat(settings))
        new = [Param(name, value) for name, value in now.items() if name not in known]
        changed = [RunTag(f"{name} from step {self._first_step}", now[name]) for name in now if known.get(name, now[name]) != now[name]]
        for start in range(0, len(new), _PARAMETERS):
            self._client.log_batch(self.run_id, params=new[start : start + _PARAMETERS])
        for start in range(0, len(changed), _PARAMETERS):
            self._client.log_batch(self.run_id, tags=changed[start : start + _PARAMETERS])

    def log_samples(self, step: int, rows: Sequence[SampleRow]) -> None:
        self._client.log_dict(self.run_id, {"step": step, "rows": [asdict(row) for row in rows]}, f"samples/step-{step:06d}.json")

    def log_alert(self, alert: Alert) -> None:
        self._client.set_tag(self.run_id, f"alert.{alert.kind}", f"{alert.title}: {alert.message}"[:_LONGEST])

    def log_summary(self, summary: Mapping[str, float | int | str]) -> None:
        self._status = _STATUS.get(str(summary.get("status")), self._status)
        for name, value in summary.items():
            self._client.set_tag(self.run_id, f"final.{_named(name)}", str(value))

    def close(self) -> None:
        if self._open:
            self._client.set_terminated(self.run_id, self._status)
            self._open = False


def is_folder(uri: str) -> bool:
    """Whether the URI is that of a file store: file:... or a plain path."""
    scheme, colon, _ = uri.partition(":")
    return uri.startswith("file:") or not colon or "/" in scheme


def _named(name: str) -> str:
    return _ODD.sub("_", name)


def _flat(settings: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    for section, values in settings.items():
        for name, value in values.items():
            yield f"{section}.{name}", str(value)[:_LONGEST]
