"""Thinned curves hide nothing: extremes, ends and gaps stay."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from megatron_entropic.observability.thinning import band, kept

VALUES = st.lists(st.one_of(st.floats(-1e6, 1e6), st.just(float("nan"))), min_size=1, max_size=300).map(np.array)


@given(VALUES, st.integers(1, 40))
def test_extremes_ends_and_gaps_stay(values: np.ndarray, buckets: int) -> None:
    rows = kept(values, buckets)
    assert (np.diff(rows) > 0).all()
    assert {0, len(values) - 1} <= set(rows.tolist())
    assert len(rows) <= max(len(values) if len(values) <= 2 * buckets + 2 else 0, 3 * buckets + 2)
    if np.isfinite(values).any():
        assert np.nanmax(values[rows]) == np.nanmax(values)
        assert np.nanmin(values[rows]) == np.nanmin(values)
    assert np.isnan(values[rows]).any() == np.isnan(values).any()


def test_a_spike_of_one_step_among_thousands_stays_at_its_step() -> None:
    values = np.zeros(5000)
    values[3217], values[3218] = 9.0, -9.0
    assert {3217, 3218} <= set(kept(values, 100).tolist())


@given(st.integers(1, 400), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_a_thinned_band_spans_as_much(steps: int, buckets: int, seed: int) -> None:
    middle = np.random.default_rng(seed).standard_normal(steps)
    x, low, high = band(np.arange(steps, dtype=float), middle - 1, middle + 1, buckets)
    assert len(x) == len(low) == len(high) <= max(buckets, 1)
    assert (np.diff(x) > 0).all()
    assert low.min() == (middle - 1).min()
    assert high.max() == (middle + 1).max()
