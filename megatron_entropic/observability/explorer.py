"""The chart of any metric in a report: the data that explorer.js draws, and the script itself."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup

from megatron_entropic.observability.metrics import METRIC_FIELDS
from megatron_entropic.observability.run_data import Array, RunData
from megatron_entropic.observability.thinning import kept

_SCRIPT = Path(__file__).with_name("explorer.js").read_text(encoding="utf-8")
FIRST = ("policy/entropy", "control/target_entropy", "control/alpha", "reward/mean")
"""Metrics at the head of the list."""
VALUES = 240_000
"""Numbers in the page at most, of some ten characters each."""


@dataclass(frozen=True)
class Explorer:
    """Parts of the explorer page: `data` and `script` as they stand between <script> tags, and the hash by which the page admits it."""

    data: Markup
    script: Markup
    script_hash: str


def make_explorer(runs: Mapping[str, RunData]) -> Explorer:
    """The chart of `runs`, by label; `data` is empty when none has logged a step.

    Five digits a value, and at most VALUES of them: of longer runs the lowest and highest of each stretch of steps, at their steps.
    """
    logged = {label: run for label, run in runs.items() if run.metrics}
    names = {label: _names(run) for label, run in logged.items()}
    buckets = max(10, VALUES // 2 // max(1, sum(map(len, names.values()))))
    data = {"runs": [_run(label, run, names[label], buckets) for label, run in logged.items()], "meanings": _meanings()}
    # JSON ends a <script> element by no means but "<": as an escape it is the same JSON
    text = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c") if logged else ""
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    return Explorer(Markup(text), Markup(_SCRIPT), digest)


def _names(run: RunData) -> list[str]:
    """The run's metrics that have a value, the first ones first."""
    names = {name for line in run.metrics for name in line} - {"step"}
    return [name for name in [*FIRST, *sorted(names - {*FIRST})] if name in names and run.has(name)]


def _run(label: str, run: RunData, names: Sequence[str], buckets: int) -> dict[str, object]:
    columns = {name: _column(run.column(name), buckets) for name in names}
    return {"label": label, "steps": [int(step) for step in run.steps], "columns": columns}


def _column(values: Array, buckets: int) -> float | list[float | None] | dict[str, object]:
    """The values, None where one is not finite; a number alone when it is the same in every step.

    Of more than fit, those that `kept` keeps, with `at`: how far the index of each is from that of the one before.
    """
    if np.isfinite(values).all() and len(set(values)) == 1:
        return float(values[0])
    rows = kept(values, buckets)
    numbers = [float(f"{value:.5g}") if np.isfinite(value) else None for value in values[rows]]
    return numbers if len(rows) == len(values) else {"at": np.diff(rows, prepend=0).tolist(), "values": numbers}


def _meanings() -> dict[str, str]:
    return {name: f"{name} ({field.unit}): {field.description}" for name, field in METRIC_FIELDS.items()}
