"""What the panels share: curves, axes, legends and remarks."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from megatron_entropic.observability.run_data import Array, RunData, smooth, smoothing_window
from megatron_entropic.observability.style import MUTED, power_of_ten, step_axis


def draw_curve(ax: Axes, x: Array, y: Array, colour: str, label: str, *, ls: Any = "-", lw: float = 2.0, smoothed: bool = True) -> None:
    """A metric: raw and faint below its moving mean; raw alone when the run is too short, or not to be smoothed."""
    if smoothed and smoothing_window(len(y)) > 1:
        ax.plot(x, y, color=colour, lw=1.0, alpha=0.3)
        y = smooth(y)
    ax.plot(x, y, color=colour, lw=lw, ls=ls, label=label, **marker(x))


def legend_above(ax: Axes, columns: int, patches: Mapping[str, Artist] | None = None) -> None:
    """A legend between title and axes, where it can hide nothing: of all that has a label, or of `patches` by label."""
    spacing = {"borderaxespad": 0.2, "borderpad": 0.1, "handletextpad": 0.6, "columnspacing": 1.0}
    place: Any = {"loc": "lower left", "bbox_to_anchor": (0, 1.0), "ncols": columns, **spacing}
    if patches is None:
        ax.legend(handlelength=2.2, **place)
    else:
        ax.legend(list(patches.values()), list(patches), handlelength=1.0, **place)


def widen(ax: Axes, span: float) -> None:
    """Makes the y axis cover at least `span`, so that noise of a flat curve does not fill the panel."""
    low, high = ax.get_ylim()
    missing = span - (high - low)
    if missing > 0:
        ax.set_ylim(low - missing / 2, high + missing / 2)


def whole_decades(ax: Axes) -> None:
    """A log y axis from a power of ten to another."""
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(power_of_ten)
    ax.yaxis.set_minor_formatter(NullFormatter())  # within one decade matplotlib would label them too, in TeX
    low, high = ax.get_ylim()
    ax.set_ylim(10 ** np.floor(np.log10(low)), 10 ** np.ceil(np.log10(high)))


def note(ax: Axes, text: str) -> None:
    """A remark in the title's row, at its right."""
    ax.set_title(text, loc="right", fontsize=9, fontweight="normal", color=MUTED)


def marker(x: Array) -> dict[str, Any]:
    """Dots where steps are few: a line through one point is invisible."""
    return {} if len(x) >= 12 else {"marker": "o", "ms": 4}


def robust_top(totals: Array) -> float:
    """The tallest step, unless the tallest is an outlier (a first step that compiles, a step that waited)."""
    typical = float(np.quantile(totals, 0.9)) if len(totals) else 0.0
    top = float(totals.max(initial=0.0))
    return (top if top <= 2 * typical else 1.25 * typical) or 1.0


def finish(ax: Axes, run: RunData, *, legend: bool = True, columns: int = 3, smoothed: bool = False) -> None:
    step_axis(ax, run.steps[0], run.steps[-1])
    window = smoothing_window(len(run.steps))
    if smoothed and window > 1:
        note(ax, f"bold: {window}-step mean; faint: each step")
    if legend and ax.get_legend_handles_labels()[0]:
        legend_above(ax, columns)
