"""Intervals cover at the rate they state, in simulation; the paired test is the permutation test it says it is."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_entropic.evaluation import intervals
from megatron_entropic.evaluation.intervals import FLIPS, MOST_EXACT, difference_interval, mean_interval, paired_test

TRIALS = 1000
SLACK = 3.3 * math.sqrt(0.95 * 0.05 / TRIALS)
"""Of a coverage of 0.95, counted in TRIALS trials: once in a thousand by luck."""


@pytest.mark.parametrize(
    ("prompts", "samples", "likes"),
    [(30, 32, (0.3, 0.9)), (40, 8, (0.2, 0.2)), (10, 4, (1.0, 1.0))],
    ids=["like-AIME", "solved-or-not", "ten-prompts"],
)
def test_intervals_cover_at_their_stated_rate(prompts: int, samples: int, likes: tuple[float, float]) -> None:
    """Prompts are drawn with a chance of being solved each, answers with that chance: the mean over all such prompts is known."""
    generator = np.random.default_rng(prompts)
    truth, covered = likes[0] / sum(likes), 0
    for _ in range(TRIALS):
        chance_P = generator.beta(*likes, prompts)
        low, high = mean_interval((generator.binomial(samples, chance_P) / samples).tolist())
        covered += low <= truth <= high
    assert abs(covered / TRIALS - 0.95) < SLACK


def test_the_plain_bootstrap_would_be_too_narrow_for_few_prompts() -> None:
    generator, plain, ours = np.random.default_rng(6), 0, 0
    for _ in range(TRIALS):
        means = generator.binomial(4, generator.beta(1.0, 1.0, 6)) / 4
        low, high = np.quantile(intervals._resampled_means(means), [0.025, 0.975])
        plain += low <= 0.5 <= high
        low, high = mean_interval(means.tolist())
        ours += low <= 0.5 <= high
    assert plain / TRIALS < 0.95 - 2 * SLACK < ours / TRIALS


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.7062), (2, 4.30265), (3, 3.18245), (9, 2.26216), (29, 2.04523), (30, 2.04227), (999, 1.96234)]
)
def test_students_quantile_is_that_of_tables(freedom: int, quantile: float) -> None:
    assert intervals._student_t(0.95, freedom) == pytest.approx(quantile, rel=1e-5)


def test_prompts_that_all_score_alike_get_the_exact_binomial_bound() -> None:
    assert mean_interval([0.0] * 30) == (0.0, pytest.approx(1 - 0.025 ** (1 / 30)))
    assert mean_interval([1.0] * 30) == (pytest.approx(0.025 ** (1 / 30)), 1.0)
    assert mean_interval([0.0]) == (0.0, pytest.approx(0.975))
    low, high = mean_interval([0.5] * 8)
    assert 0.0 <= low < 0.5 < high <= 1.0


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=40))
def test_an_interval_holds_the_mean_lies_in_bounds_and_repeats(means: list[float]) -> None:
    low, high = mean_interval(means)
    assert 0.0 <= low <= sum(means) / len(means) <= high <= 1.0
    assert mean_interval(means) == (low, high)


def flips(differences: list[float]) -> float:
    """The p-value by all flips of all signs, zeros too, in exact arithmetic of whole numbers."""
    whole = [round(8 * value) for value in differences]
    sums = [
        abs(sum(sign * value for sign, value in zip(signs, whole, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(whole))
    ]
    return sum(each >= abs(sum(whole)) for each in sums) / len(sums)


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=9))
def test_the_exact_test_is_all_flips_of_signs(eighths: list[tuple[int, int]]) -> None:
    first, second = [one / 8 for one, _ in eighths], [other / 8 for _, other in eighths]
    test = paired_test(first, second)
    assert test.exact
    assert test.p_value == pytest.approx(flips([b - a for a, b in zip(first, second, strict=True)]))
    assert test.difference == pytest.approx(sum(second) / len(second) - sum(first) / len(first))
    assert test.low <= test.difference <= test.high
    back = paired_test(second, first)
    assert (back.p_value, back.differing) == (pytest.approx(test.p_value), test.differing)


def test_random_flips_agree_with_the_exact_test(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(3)
    first, second = generator.integers(0, 9, (2, MOST_EXACT)) / 8 - [[0.1], [0.0]]
    exact = paired_test(first.tolist(), second.tolist())
    monkeypatch.setattr(intervals, "MOST_EXACT", 0)
    drawn = paired_test(first.tolist(), second.tolist())
    assert (exact.exact, drawn.exact) == (True, False)
    assert drawn.p_value == pytest.approx(exact.p_value, abs=4 * math.sqrt(exact.p_value / FLIPS))
    assert paired_test(first.tolist(), second.tolist()) == drawn


def test_equal_models_are_called_different_as_rarely_as_stated() -> None:
    generator, called = np.random.default_rng(0), 0
    for _ in range(TRIALS):
        chance_P = generator.beta(0.5, 0.5, 12)
        first, second = generator.binomial(8, chance_P, (2, 12)) / 8
        called += paired_test(first.tolist(), second.tolist()).p_value < 0.05
    assert called / TRIALS < 0.05 + SLACK


def test_differences_that_are_all_the_same_have_an_interval_too() -> None:
    low, high = difference_interval(np.zeros(20))
    assert -0.4 < low < 0.0 < high < 0.4
    assert paired_test([0.5] * 3, [0.5] * 3).p_value == 1.0
    with pytest.raises(ValueError, match="the same prompts twice; there are 2 and 1"):
        paired_test([1.0, 0.0], [1.0])
