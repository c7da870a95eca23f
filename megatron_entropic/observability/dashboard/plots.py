"""Curves in characters: one row of bars, or some rows with a line for the target."""

import itertools
import math
from collections.abc import Sequence

BARS = "▁▂▃▄▅▆▇█"
POINT, TARGET = "•", "┄"


def sparkline(values: Sequence[float], width: int) -> str:
    """One bar for each stretch of steps, its mean, from the lowest to the highest of them; a blank where nothing is known."""
    means = shrunk(values, width)
    known = [value for value in means if math.isfinite(value)]
    if not known:
        return ""
    low, span = min(known), max(known) - min(known)
    return "".join(BARS[round((value - low) / span * 7) if span else 3] if math.isfinite(value) else " " for value in means)


def rows_with_target(values: Sequence[float], targets: Sequence[float], width: int, height: int) -> list[str]:
    """`height` rows, the highest first: a point for the mean of each stretch of steps, and the target behind them."""
    means, wanted = shrunk(values, width), shrunk(targets, width)
    known = [value for value in (*means, *wanted) if math.isfinite(value)]
    if not known:
        return []
    low, high = min(known), max(known)
    margin = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    low, high = low - margin, high + margin
    grid = [[" "] * len(means) for _ in range(height)]
    for curve, character in ((wanted, TARGET), (means, POINT)):
        for column, value in enumerate(curve):
            if math.isfinite(value):
                grid[min(height - 1, int((high - value) / (high - low) * height))][column] = character
    return ["".join(row) for row in grid]


def shrunk(values: Sequence[float], width: int) -> list[float]:
    """At most `width` numbers: the mean of each stretch, NaN where it has no finite value."""
    count = min(len(values), max(1, width))
    edges = [number * len(values) // count for number in range(count + 1)] if count else [0]
    parts = [[value for value in values[start:stop] if math.isfinite(value)] for start, stop in itertools.pairwise(edges)]
    return [math.fsum(part) / len(part) if part else math.nan for part in parts]
