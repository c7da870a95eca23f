"""Watches a run: alerts when trouble begins and when it is over, and remarks on what is wrong from the start, once, for the report.

What is trouble: alerts/conditions.py.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from megatron_entropic.config import Config
from megatron_entropic.observability.alerts.conditions import CONDITIONS, RewardTrend, Seen, free_bytes
from megatron_entropic.observability.alerts.episodes import Episode
from megatron_entropic.observability.metrics import MetricValue
from megatron_entropic.observability.run_warnings import RunWarning, append_warning, read_warnings
from megatron_entropic.observability.trackers.tracker import Alert

logger = logging.getLogger(__name__)


class Watch:
    """A Tracker that reads each step's metrics, logs alerts and hands them to `deliver`.

    Each kind of trouble is noted in warnings.jsonl once a run, resumed or not. Alerts come once for as long as trouble lasts.

    Args:
        largest_entropy: the largest value (nats) of the entropy that the run steers by.
        history: metrics of the steps before a resumed run's first, which say what lasts since when.
    """

    def __init__(
        self,
        cfg: Config,
        largest_entropy: float,
        deliver: Callable[[Alert], None] = lambda alert: None,
        history: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self._cfg = cfg
        self._largest = largest_entropy
        self._deliver = deliver
        self._reward = RewardTrend()
        self._said = {warning.kind for warning in read_warnings(cfg.run_dir)}
        patience = {kind: condition.patience(cfg.alerts) for kind, condition in CONDITIONS.items()}
        self._episodes = {kind: Episode(steps, cfg.alerts.clear_steps) for kind, steps in patience.items() if steps}
        self.last_step = -1
        for line in history:
            for kind, message in self._looked_at(line["step"], line, free=None).items():
                if kind in self._episodes:
                    self._episodes[kind].step(message is not None)

    def log(self, step: int, metrics: Mapping[str, MetricValue]) -> None:
        """Looks at the metrics of `step`, and at the disk."""
        for kind, message in self._looked_at(step, metrics, free_bytes(self._cfg)).items():
            episode = self._episodes.get(kind)
            change = None if episode is None else episode.step(message is not None)
            if message is not None and (CONDITIONS[kind].remarked or change == "begins"):
                self._note(kind, step, message, log=change != "begins")
            if change == "begins" and message is not None and episode is not None:
                self._alert(Alert(kind, "begins", step, episode.steps, message))
            elif change == "over" and episode is not None:
                message = f"after {episode.lasted} steps with it there were {self._cfg.alerts.clear_steps} without"
                self._alert(Alert(kind, "over", step, episode.lasted, message))

    def alert(self, kind: str, message: str) -> None:
        """Alerts of what ended the run, at the step after the last one. The log has it already, from where it is raised to."""
        self._deliver(Alert(kind, "begins", self.last_step + 1, 0, message))

    def close(self) -> None:
        """There is nothing to release."""

    def _looked_at(self, step: int, metrics: Mapping[str, MetricValue], free: int | None) -> dict[str, str | None]:
        """By kind, the message where there is this trouble."""
        self.last_step = step
        self._reward.add(metrics.get("reward/mean"))
        seen = Seen(self._cfg, step, metrics, self._largest, self._reward, free)
        return {kind: condition.of(seen) for kind, condition in CONDITIONS.items()}

    def _note(self, kind: str, step: int, message: str, *, log: bool) -> None:
        """In warnings.jsonl, once a run."""
        if kind in self._said:
            return
        self._said.add(kind)
        append_warning(self._cfg.run_dir, RunWarning(kind, step, message))
        if log:
            logger.warning("step %d: %s", step + 1, message)

    def _alert(self, alert: Alert) -> None:
        if alert.state == "begins":
            logger.warning("alert %s: %s", alert.title, alert.message)
        else:
            logger.info("alert %s: %s", alert.title, alert.message)
        self._deliver(alert)
