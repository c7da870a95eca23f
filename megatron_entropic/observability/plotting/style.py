"""One look for every picture, and the parts its panels share: sober, colour-blind safe (Okabe and Ito), readable at 800 pixels.

The same figures serve as PNG files (light) and inside report.html, where the colours below become CSS variables so that
they follow the reader's light or dark theme (see `themed_svg`).
"""

import io
import math
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from megatron_entropic.observability.run_data import Array, RunData, smooth, smoothing_window
from megatron_entropic.observability.thinning import band, kept

INK, MUTED, GREY, GRID, PAPER = "#1f2328", "#656d76", "#b4bac2", "#dfe3e8", "#ffffff"
BLUE, ORANGE, GREEN, PURPLE, SKY, YELLOW = "#0072b2", "#d55e00", "#009e73", "#b0578d", "#56b4e9", "#e69f00"
SERIES = (BLUE, ORANGE, GREEN, PURPLE, YELLOW, SKY)
DASHES = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (6, 2, 1.5, 2)), (0, (10, 3)), (0, (1, 1)))

BUCKETS = 500
"""Stretches of steps of which a picture shows the lowest and the highest value; more than it has pixels for."""

CSS_NAMES = {
    INK: "--ink",
    MUTED: "--muted",
    GREY: "--grey",
    GRID: "--grid",
    PAPER: "--paper",
    BLUE: "--blue",
    ORANGE: "--orange",
    GREEN: "--green",
    PURPLE: "--purple",
    SKY: "--sky",
    YELLOW: "--yellow",
}

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

_RC: Any = {
    "figure.facecolor": PAPER,
    "figure.dpi": 100,
    "savefig.facecolor": PAPER,
    "savefig.dpi": 200,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 11,
    "text.color": INK,
    "text.parse_math": False,  # run names are data, not formulas
    "axes.facecolor": PAPER,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.labelcolor": INK,
    "axes.labelsize": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 26,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "lines.linewidth": 2.0,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 10,
    "svg.fonttype": "none",  # text stays text: small, sharp, searchable
    "svg.hashsalt": "megatron_entropic",  # the same run gives the same bytes
}


def styled() -> AbstractContextManager[None]:
    """The style, for a `with` block; nothing outside it changes."""
    return mpl.rc_context(_RC)


def step_axis(ax: Axes, first: float, last: float) -> None:
    """An x axis of whole steps, with room for half a step at both ends."""
    ax.set_xlim(first - 0.5, last + 0.5)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    ax.set_xlabel("step")


def power_of_ten(value: float, _position: float = 0) -> str:
    """Tick label of a log axis: 10⁻⁶ as plain text (a formatter of matplotlib; the position is not used)."""
    exponent = math.log10(value)
    return "10" + f"{round(exponent)}".translate(_SUPERSCRIPTS)


def themed_svg(figure: Figure, prefix: str) -> str:
    """The figure as an <svg> element for inline use: palette colours as CSS variables, ids made unique by `prefix`."""
    buffer = io.StringIO()
    _thin(figure)
    with styled():
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    for colour, name in CSS_NAMES.items():
        svg = re.sub(re.escape(colour), f"var({name})", svg, flags=re.IGNORECASE)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)  # the viewBox scales it to the page
    svg = re.sub(r' xmlns(?::xlink)?="[^"]*"', "", svg).replace("xlink:href", "href")  # HTML needs no namespaces
    return svg.strip()


def _thin(figure: Figure) -> None:
    """Leaves of each curve what can be told apart at the size of a page: a long run's would be megabytes."""
    for line in (line for ax in figure.axes for line in ax.lines):
        x, y = (np.asarray(values, dtype=np.float64) for values in line.get_data(orig=False))
        rows = kept(y, BUCKETS)
        if len(rows) < len(y):
            line.set_data(x[rows], y[rows])


def draw_band(ax: Axes, x: Array, low: Array, high: Array, colour: str, *, alpha: float, label: str | None = None) -> None:
    """A shaded band between two curves; thinned, it still covers all of it."""
    ax.fill_between(*band(x, low, high, BUCKETS), color=colour, alpha=alpha, lw=0, label=label)


def draw_curve(ax: Axes, x: Array, y: Array, colour: str, label: str, *, ls: Any = "-", lw: float = 2.0, smoothed: bool = True) -> None:
    """A metric: raw and faint below its moving mean; raw alone when the run is too short, or not to be smoothed."""
    if smoothed and smoothing_window(len(y)) > 1:
        ax.plot(x, y, color=colour, lw=1.0, alpha=0.3)
        y = smooth(y)
    ax.plot(x, y, color=colour, lw=lw, ls=ls, label=label, **marker(x))


def legend_above(ax: Axes, columns: int, patches: Mapping[str, Artist] | None = None) -> None:
    """A legend between title and axes, where it can hide nothing: of all that has a label, or of `patches` by label."""
    spacing = {"borderaxespad": 0.2, "borderpad": 0.1, "handletextpad": 0.6, "columnspacing": 1.0}
    placement: Any = {"loc": "lower left", "bbox_to_anchor": (0, 1.0), "ncols": columns, **spacing}
    rows = -(-len(ax.get_legend_handles_labels()[0] if patches is None else patches) // columns)
    if rows > 1:
        ax.set_title(ax.get_title(loc="left"), pad=_RC["axes.titlepad"] + 15 * (rows - 1))  # which moves the remark at the right too
    if patches is None:
        ax.legend(handlelength=2.2, **placement)
    else:
        ax.legend(list(patches.values()), list(patches), handlelength=1.0, **placement)


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
