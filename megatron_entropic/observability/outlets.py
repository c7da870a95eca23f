"""Where a run's metrics, samples and alerts go besides its folder: trackers, Prometheus, a webhook. None of them can end the run."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from megatron_entropic.checkpoint_files.kind import model_folder
from megatron_entropic.config import Config
from megatron_entropic.config.alerts import webhook_address
from megatron_entropic.config.secrets import without_passwords
from megatron_entropic.hf.architectures import Architecture
from megatron_entropic.observability.alerts import Webhook
from megatron_entropic.observability.metrics import MetricValue
from megatron_entropic.observability.prometheus import PrometheusEndpoint
from megatron_entropic.observability.trackers import Alert, SampleRow, Trackers
from megatron_entropic.observability.trackers.opening import flush_limit
from megatron_entropic.observability.watch import Watch
from megatron_entropic.rollout.source import RolloutSource
from megatron_entropic.rollout.types import Rollout, ServerLostError
from megatron_entropic.start_checks.learning import largest_entropy
from megatron_entropic.system.folder_lock import FolderOwnedError
from megatron_entropic.system.stop_signal import StopRequested

LAST_VALUES = ("reward/mean", "policy/entropy", "control/target_entropy", "control/alpha", "response/length_mean")
"""Metrics of the last step that the final summary holds, besides those of validation."""
_LONGEST = 500
"""Characters of an error in an alert."""


class Outlets:
    """Opened on rank 0 before the first step; `history` are the metrics of the steps before it.

    Raises ReportedError, or ValueError, for what must be mended first: a package, a variable, a port.
    """

    def __init__(self, cfg: Config, source: RolloutSource, tracker_ids: dict[str, str], history: Sequence[Mapping[str, Any]]) -> None:
        self._cfg, self._source = cfg, source
        self._last: Mapping[str, MetricValue] = history[-1] if history else {}
        first_step = len(history)
        url, tracking = webhook_address(cfg.alerts), cfg.tracking
        self._endpoint = (
            PrometheusEndpoint(tracking, cfg.run.name, cfg.trainer.steps, source.metrics_servers) if tracking.prometheus_port else None
        )
        try:
            self._trackers = Trackers(cfg, first_step=first_step, ids=tracker_ids, history=history)
        except BaseException:
            self._close_endpoint()
            raise
        self._webhook = Webhook(url, cfg.run.name, cfg.alerts.webhook_timeout_s) if url else None
        largest = largest_entropy(cfg.control, Architecture.from_hf(model_folder(cfg.model.hf_path).hf_dir).vocab_size)
        self._watch = Watch(cfg, largest, self._alert, history)

    def log(self, step: int, metrics: Mapping[str, MetricValue], rollouts: Sequence[Rollout], rewards: Sequence[float]) -> None:
        """Hands on what a step gave."""
        every = self._cfg.tracking.samples_every
        if every and step % every == 0 and self._trackers.all:
            self._trackers.log_samples(step, self._samples(rollouts, rewards))
        self._trackers.log(step, metrics)
        if self._endpoint is not None:
            self._endpoint.log(step, metrics)
        self._watch.log(step, metrics)
        self._last = metrics

    def complete(self, step: int, metrics: Mapping[str, MetricValue]) -> None:
        """Hands on a step's metrics again, which have become more."""
        self._trackers.log(step, metrics)
        if self._endpoint is not None:
            self._endpoint.log(step, metrics)
        self._last = metrics

    def close(self, error: BaseException | None) -> None:
        """Says how the run ended and waits, for a limited time, until all of it was taken; `error` is what ended it.

        A run that another process has taken over says nothing any more.
        """
        if isinstance(error, FolderOwnedError):
            self._trackers.drop()
            self._close_endpoint()
            return
        stopped = isinstance(error, StopRequested) or (error is not None and not isinstance(error, Exception))
        if error is not None and not stopped:
            kind = "server_lost" if isinstance(error, ServerLostError) else "run_failed"
            first_line = without_passwords(str(error)).partition("\n")[0]
            self._watch.alert(kind, f"the run has ended: {type(error).__name__}: {first_line[:_LONGEST]}")
        self._trackers.log_summary(self._summary("finished" if error is None else "stopped" if stopped else "failed"))
        until = time.monotonic() + flush_limit(self._cfg.tracking)
        if self._webhook is not None:
            self._webhook.finish()
        self._trackers.close(until)
        if self._webhook is not None:
            self._webhook.close(until)
        self._close_endpoint()

    def _summary(self, status: str) -> dict[str, float | int | str]:
        summary: dict[str, float | int | str] = {"status": status, "steps": self._watch.last_step + 1}
        for name, value in self._last.items():
            if value is not None and (name in LAST_VALUES or name.startswith("validation/")):
                summary[name] = value
        return summary

    def _samples(self, rollouts: Sequence[Rollout], rewards: Sequence[float]) -> list[SampleRow]:
        count = min(self._cfg.tracking.samples, len(rollouts))
        chosen = [number * len(rollouts) // count for number in range(count)]
        return [
            SampleRow(
                self._source.prompt_text(rollouts[number]),
                rollouts[number].text,
                rewards[number],
                len(rollouts[number].response_ids),
                rollouts[number].finish_reason,
            )
            for number in chosen
        ]

    def _alert(self, alert: Alert) -> None:
        self._trackers.log_alert(alert)
        if self._webhook is not None:
            self._webhook.post(alert)

    def _close_endpoint(self) -> None:
        if self._endpoint is not None:
            self._endpoint.close()
