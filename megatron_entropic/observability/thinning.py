"""Fewer points of a long curve, with nothing hidden: of each stretch of steps the lowest and the highest value stay, at their steps."""

import itertools

import numpy as np
from numpy.typing import NDArray

from megatron_entropic.observability.run_data import Array


def kept(values: Array, buckets: int) -> NDArray[np.int64]:
    """Ascending indices of the values that stay: all, or the first, the last, and the extremes of `buckets` stretches.

    Of a stretch with values that are not finite one of them stays too, so that a curve keeps its gaps.
    """
    count = len(values)
    if count <= 2 * buckets + 2:
        return np.arange(count)
    chosen = {0, count - 1}
    finite = np.isfinite(values)
    for start, stop in _stretches(count, buckets):
        part, known = values[start:stop], finite[start:stop]
        if not known.all():
            chosen.add(start + int(np.flatnonzero(~known)[0]))
        if known.any():
            chosen.update((start + int(np.where(known, part, np.inf).argmin()), start + int(np.where(known, part, -np.inf).argmax())))
    return np.array(sorted(chosen))


def band(x: Array, low: Array, high: Array, buckets: int) -> tuple[Array, Array, Array]:
    """A band of at most so many points that covers all of the band given: of each stretch the lowest `low` and the highest `high`."""
    if len(x) <= buckets:
        return x, low, high
    stretches = list(_stretches(len(x), buckets))
    with np.errstate(invalid="ignore"):
        lows = [np.fmin.reduce(low[start:stop]) for start, stop in stretches]
        highs = [np.fmax.reduce(high[start:stop]) for start, stop in stretches]
    middles = [x[start] if start == 0 else x[stop - 1] if stop == len(x) else x[(start + stop) // 2] for start, stop in stretches]
    return np.array(middles), np.array(lows), np.array(highs)


def _stretches(count: int, buckets: int) -> list[tuple[int, int]]:
    edges = np.linspace(0, count, buckets + 1).round().astype(int).tolist()
    return list(itertools.pairwise(edges))
