"""Settling of an entropy: the moving average of a curve, and from where on it stays near a target."""

import math
from collections.abc import Sequence

SETTLED = 0.05
"""An entropy has settled when its moving average stays within this fraction of the target."""
WINDOW = 5
"""Updates of the moving average."""


def mean(values: Sequence[float]) -> float:
    """Exactly rounded mean of at least one value."""
    return math.fsum(values) / len(values)


def moving_mean(values: Sequence[float]) -> list[float]:
    """The mean of each value and the WINDOW - 1 before it; of fewer at the beginning."""
    return [mean(values[max(0, index - WINDOW + 1) : index + 1]) for index in range(len(values))]


def settled_from(smooth: Sequence[float], target: float) -> int | None:
    """The index from which on `smooth` stays within SETTLED of the target; None when its last value is outside."""
    outside = [index for index, value in enumerate(smooth) if not abs(value / target - 1) <= SETTLED]
    settling = outside[-1] + 1 if outside else 0
    return settling if settling < len(smooth) else None
