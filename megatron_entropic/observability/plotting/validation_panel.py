"""The panel of a validation set: its mean score over the steps that were validated, with its interval, and what else was scored."""

from functools import partial

import numpy as np
from matplotlib.axes import Axes

from megatron_entropic.observability.plotting.panels import Panel
from megatron_entropic.observability.plotting.style import BLUE, GREEN, ORANGE, PURPLE, finish, note, widen
from megatron_entropic.observability.run_data import RunData
from megatron_entropic.observability.thinning import kept

_OTHERS = (
    ("pass", "pass@k", GREEN, (0, (6, 2))),
    ("majority", "majority", PURPLE, (0, (2, 1.5))),
    ("greedy", "greedy", ORANGE, (0, (6, 2, 1.5, 2))),
)


MOST_PANELS = 12
"""Sets that have a panel, the first by name; the report's chart has all of them."""
_MOST_DOTS = 60
"""Validated steps that have a dot each; of more, twice as many at most are drawn."""


def validation_panels(run: RunData) -> dict[str, Panel]:
    """A panel for each set that was validated, MOST_PANELS at most, by the picture's name."""
    fields = {field for line in run.metrics for field in line if field.startswith("validation/") and field.endswith("/avg")}
    sets = sorted(field.split("/")[1] for field in fields if run.has(field))
    return {f"validation_{name}": partial(_draw, name=name) for name in sets[:MOST_PANELS]}


def _draw(ax: Axes, run: RunData, *, name: str) -> None:
    """Scores of one set. Dots are validated steps; the one before the first step stands at 0."""
    column = {part: run.column(f"validation/{name}/{part}") for part in ("avg", "avg_low", "avg_high", *(part for part, *_ in _OTHERS))}
    seen = np.flatnonzero(np.isfinite(column["avg"]))
    seen = seen[kept(column["avg"][seen], _MOST_DOTS)]  # of many the lowest and highest of each stretch
    steps = run.steps[seen]
    ax.set_title(f"Validation: {name}")
    ax.set_ylabel("score")
    ax.fill_between(steps, column["avg_low"][seen], column["avg_high"][seen], color=BLUE, alpha=0.15, lw=0)
    for part, label, colour, dash in _OTHERS:
        if np.isfinite(column[part]).any():
            ax.plot(steps, column[part][seen], color=colour, lw=1.4, ls=dash, label=label)
    start = run.column(f"validation/{name}/start")
    before = [(0.0, start[0])] if np.isfinite(start[:1]).any() else []
    points = [*before, *zip(steps, column["avg"][seen], strict=True)]
    ax.plot(*zip(*points, strict=True), color=BLUE, label="mean of samples", marker="o" if len(points) <= _MOST_DOTS else "", ms=3.5)
    finish(ax, run, columns=4)
    ax.set_xlim(left=min(ax.get_xlim()[0], -0.5 if before else np.inf))
    widen(ax, 0.1)
    note(ax, "band: 95% of resampled prompts")
