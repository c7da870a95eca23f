"""W&B: metrics, samples, alerts, settings. Online, or offline with WANDB_MODE=offline: run_dir/wandb, for `wandb sync`."""

import contextlib
import math
import os
import secrets
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from megatron_entropic.config import Config
from megatron_entropic.observability.metrics import MetricValue
from megatron_entropic.observability.trackers.tracker import VALIDATION, Alert, SampleRow, TrackerRefusedError

if TYPE_CHECKING:
    import wandb

_TITLE = 63
"""Longest title of an alert."""
_SERVICE = "wandb-core"
_ENDING_S = 2.0
"""How long wandb may take to see that its process is gone."""
_UNSENT = ("offline", "dryrun", "disabled")


class WandbTracker:
    """A run at W&B. A resumed one has the same id; what W&B shows of steps that are trained again: docs/trackers.md."""

    def __init__(self, run_dir: str | os.PathLike[str], run_id: str | None, first_step: int, cfg: Config) -> None:
        """Raises TrackerRefusedError when nobody is logged in, and wandb's own errors."""
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # its reports hold pieces of this process
        import wandb

        settings = cfg.tracking
        self.run_id = run_id or secrets.token_hex(4)
        rewind = settings.wandb_rewind and run_id is not None and os.environ.get("WANDB_MODE") not in _UNSENT
        where: dict[str, Any] = (
            {"resume_from": f"{run_id}?_step={first_step - 1}"} if rewind else {"id": self.run_id, "resume": "allow"}
        )
        try:
            self._run: wandb.Run | None = wandb.init(
                dir=str(Path(run_dir).absolute()),
                name=cfg.run.name,
                project=os.environ.get("WANDB_PROJECT") or settings.wandb_project,
                entity=settings.wandb_entity or None,
                group=settings.wandb_group or None,
                tags=settings.wandb_tags or None,
                # The log is the run's own. Metadata would hold the command line.
                settings=wandb.Settings(console="off", silent=True, x_disable_meta=True, disable_git=True, disable_code=True),
                **where,
            )
        except wandb.errors.UsageError as error:
            raise TrackerRefusedError(
                f"trainer.trackers=wandb: {' '.join(str(error).split())}; log in by `wandb login` or WANDB_API_KEY, or set "
                "WANDB_MODE=offline and send the run later by `wandb sync`"
            ) from error
        self._run.define_metric(f"{VALIDATION}*", summary="max")
        self._status = "failed"

    def log(self, step: int, metrics: Mapping[str, MetricValue]) -> None:
        finite = {name: value for name, value in metrics.items() if value is not None and math.isfinite(value)}
        self._opened.log(finite, step=step, commit=True)

    def log_config(self, settings: Mapping[str, Mapping[str, Any]]) -> None:
        self._opened.config.update(  # type: ignore[no-untyped-call]
            {section: dict(values) for section, values in settings.items()}, allow_val_change=True
        )

    def log_samples(self, step: int, rows: Sequence[SampleRow]) -> None:
        import wandb

        columns: list[str | int] = ["step", *(field.name for field in fields(SampleRow))]
        table = wandb.Table(columns=columns, data=[[step, *asdict(row).values()] for row in rows])
        self._opened.log({"samples": table}, step=step, commit=False)

    def log_alert(self, alert: Alert) -> None:
        level = "WARN" if alert.state == "begins" else "INFO"
        self._opened.alert(title=alert.title[:_TITLE], text=alert.message, level=level, wait_duration=0.001)

    def log_summary(self, summary: Mapping[str, float | int | str]) -> None:
        self._status = str(summary.get("status", self._status))
        self._opened.summary.update({f"final/{name}": value for name, value in summary.items()})

    def close(self) -> None:
        import wandb

        run, self._run = self._run, None
        if run is None:
            return
        failed = int(self._status == "failed")
        try:
            run.finish(exit_code=failed)
        finally:
            wandb.teardown(exit_code=failed)  # now, within tracking.flush_s, and not when this process ends

    @staticmethod
    def abandon() -> None:
        """Ends W&B's own process, which the end of this one would wait for, also while a run is being opened."""
        for process in psutil.Process().children():
            try:
                if process.name() == _SERVICE:
                    process.kill()
            except psutil.NoSuchProcess:
                continue
        ending = threading.Thread(target=_forget_service, name="the end of wandb", daemon=True)
        ending.start()
        ending.join(_ENDING_S)

    @property
    def _opened(self) -> "wandb.Run":
        if self._run is None:
            raise ValueError("the run at W&B is closed")
        return self._run


def _forget_service() -> None:
    """Has wandb see now that its process is gone; else it would wait for it, and complain, when this one ends."""
    import wandb

    with contextlib.suppress(Exception, SystemExit):  # of a connection that is closed, with its process's exit code: both abandoned
        wandb.teardown(exit_code=1)
