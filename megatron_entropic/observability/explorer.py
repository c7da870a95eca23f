"""The chart of any metric in a report: the data that explorer.js draws, and the script itself."""

import base64
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from markupsafe import Markup

from megatron_entropic.observability.metrics import METRIC_FIELDS
from megatron_entropic.observability.run_data import Array, RunData

_SCRIPT = Path(__file__).with_name("explorer.js").read_text(encoding="utf-8")
FIRST = ("policy/entropy", "control/target_entropy", "control/alpha", "reward/mean")
"""Metrics at the head of the list."""
MOST_VALUES = 600_000
"""Numbers in a page; of more, every n-th step is shown."""


@dataclass(frozen=True)
class Explorer:
    """Parts of the explorer page: `data` and `script` as they stand between <script> tags, and the hash by which the page admits it."""

    data: Markup
    script: Markup
    script_hash: str


def make_explorer(runs: Mapping[str, RunData]) -> Explorer:
    """The chart of `runs`, by label; `data` is empty when none has logged a step.

    Five digits a value: a run of 5,000 steps takes about 2 MB of the page. Of many runs not every step is there (MOST_VALUES).
    """
    logged = {label: run for label, run in runs.items() if run.metrics}
    every = math.ceil(sum(len(run.metrics) * len(run.metrics[-1]) for run in logged.values()) / MOST_VALUES)
    data = {"runs": [_run(label, run, every) for label, run in logged.items()], "meanings": _meanings()}
    # JSON ends a <script> element by no means but "<": as an escape it is the same JSON
    text = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c") if logged else ""
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    return Explorer(Markup(text), Markup(_SCRIPT), digest)


def _run(label: str, whole: RunData, every: int) -> dict[str, object]:
    """A run's columns, of every n-th step and the last."""
    run = replace(whole, metrics=[*whole.metrics[:-1:every], whole.metrics[-1]])
    names = {name for line in run.metrics for name in line} - {"step"}
    ordered = [*FIRST, *sorted(names - {*FIRST})]
    columns = {name: _plain(run.column(name)) for name in ordered if name in names and run.has(name)}
    return {"label": label, "steps": [int(step) for step in run.steps], "columns": columns}


def _plain(values: Array) -> float | list[float | None]:
    """The values, None where one is not finite; a number alone when it is the same in every step."""
    if np.isfinite(values).all() and len(set(values)) == 1:
        return float(values[0])
    return [float(f"{value:.5g}") if np.isfinite(value) else None for value in values]


def _meanings() -> dict[str, str]:
    return {name: f"{name} ({field.unit}): {field.description}" for name, field in METRIC_FIELDS.items()}
