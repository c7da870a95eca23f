"""TensorBoard: scalars, samples and alerts as text, under logs/tensorboard."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from megatron_entropic.config import Config
from megatron_entropic.observability.metrics import MetricValue
from megatron_entropic.observability.trackers.tracker import Alert, SampleRow
from megatron_entropic.system.atomic_files import naming


class TensorBoardTracker:
    """Event files under run_dir/`run_id`. `first_step` hides what a killed run logged from that step on."""

    def __init__(
        self, run_dir: str | os.PathLike[str], run_id: str | None = None, first_step: int = 0, cfg: Config | None = None
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter  # here: it takes seconds to import and rank 0 alone needs it

        self.run_id = run_id or "logs/tensorboard"
        self._first_step = first_step
        self._folder = Path(run_dir) / self.run_id
        self._writer = SummaryWriter(str(self._folder), purge_step=first_step if first_step > 0 else None)

    def log(self, step: int, metrics: Mapping[str, MetricValue]) -> None:
        with naming(self._folder):
            for name, value in metrics.items():
                if name != "step" and value is not None and math.isfinite(value):
                    self._writer.add_scalar(name, value, step)
            self._writer.flush()

    def log_config(self, settings: Mapping[str, Mapping[str, Any]]) -> None:
        text = yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True)
        self._text("settings", self._first_step, _verbatim(text))

    def log_samples(self, step: int, rows: Sequence[SampleRow]) -> None:
        parts = [
            f"reward {row.reward:g}, {row.length} tokens, {row.finish_reason}\n\n{_verbatim(row.prompt)}\n\n{_verbatim(row.response)}"
            for row in rows
        ]
        self._text("samples", step, "\n\n---\n\n".join(parts))

    def log_alert(self, alert: Alert) -> None:
        self._text(f"alerts/{alert.kind}", alert.step, f"**{alert.title}**: {alert.message}")

    def close(self) -> None:
        with naming(self._folder):
            self._writer.close()

    def _text(self, name: str, step: int, text: str) -> None:
        with naming(self._folder):
            self._writer.add_text(name, text, step)
            self._writer.flush()


def _verbatim(text: str) -> str:
    """A block of Markdown that shows the text as it is."""
    return "\n".join(f"    {line}" for line in text.splitlines())
