"""One look for every picture: sober, colour-blind safe (Okabe and Ito's palette), readable at 800 pixels.

The same figures serve as PNG files (light) and inside report.html, where the colours below become CSS variables so that
they follow the reader's light or dark theme (see `themed_svg`).
"""

import io
import math
import re
from contextlib import AbstractContextManager
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

INK, MUTED, GREY, GRID, PAPER = "#1f2328", "#656d76", "#b4bac2", "#dfe3e8", "#ffffff"
BLUE, ORANGE, GREEN, PURPLE, SKY, YELLOW = "#0072b2", "#d55e00", "#009e73", "#b0578d", "#56b4e9", "#e69f00"
SERIES = (BLUE, ORANGE, GREEN, PURPLE, YELLOW, SKY)
DASHES = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (6, 2, 1.5, 2)), (0, (10, 3)), (0, (1, 1)))

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
