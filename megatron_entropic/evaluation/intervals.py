"""How sure a score is: an interval of a mean over prompts, and whether two policies differ on the same prompts.

Prompts are the sample: they are drawn anew, or their signs flipped, never single answers, which depend on each other.
Random numbers come from a fixed seed, so the same scores give the same interval on every machine.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

LEVEL = 0.95
RESAMPLES = 4000
_AT_ONCE = 2**22
"""Indices drawn at one time, to bound memory."""
MOST_EXACT = 20
"""Prompts that differ, up to which every flip of signs is looked at; 2**20 of them take a tenth of a second."""
FLIPS = 100_000
"""Random flips of signs for more prompts."""

Values = npt.NDArray[np.float64]


def mean_interval(means: Sequence[float], level: float = LEVEL) -> tuple[float, float]:
    """An interval that holds the mean over all such prompts with chance `level`; `means` are those of each prompt, at least one.

    The bootstrap over prompts, its quantiles moved outwards as Student's t and the divisor n - 1 ask for (Hesterberg 2015, "expanded
    percentile"): the plain one is too narrow for 30 prompts. Where all prompts score alike, resampling shows nothing: scores in [0, 1]
    then get the exact binomial bound (Clopper-Pearson) towards the inside, and a single prompt the whole range.
    """
    values_P = np.asarray(means, dtype=np.float64)
    count, low, high = len(values_P), float(values_P.min()), float(values_P.max())
    if low == high:
        width = 1.0 - ((1.0 - level) / 2) ** (1.0 / count)
        return max(min(low, 0.0), low - (low > 0) * width), min(max(high, 1.0), high + (high < 1) * width)
    tail = NormalDist().cdf(-math.sqrt(count / (count - 1)) * _student_t(level, count - 1))
    low, high = np.quantile(_resampled_means(values_P), [tail, 1.0 - tail])
    return float(low), float(high)


def _resampled_means(values_P: Values) -> Values:
    generator, count = np.random.Generator(np.random.Philox(key=0)), len(values_P)
    rows = max(1, _AT_ONCE // count)
    means = []
    for start in range(0, RESAMPLES, rows):
        drawn = generator.integers(0, count, (min(rows, RESAMPLES - start), count))
        means.append(values_P[drawn].mean(axis=1))
    return np.concatenate(means)


def _student_t(level: float, freedom: int) -> float:
    """The two-sided quantile of Student's t, by bisection of its distribution function."""
    low, high = 0.0, 1000.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < level else (low, middle)
    return high


def _within(t: float, freedom: int) -> float:
    """Chance that |T| < t, by the finite series for whole degrees of freedom (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term, total = (cosine, cosine if freedom > 1 else 0.0) if odd else (1.0, 1.0)
    for number in range(3 if odd else 2, freedom - 1, 2):
        term *= cosine**2 * (number - 1) / number
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


@dataclass(frozen=True)
class PairedTest:
    """Whether two policies differ on the same prompts: mean difference, its interval, and the chance of one as large by luck."""

    prompts: int
    differing: int
    difference: float
    low: float
    high: float
    p_value: float
    exact: bool


def paired_test(first: Sequence[float], second: Sequence[float], level: float = LEVEL) -> PairedTest:
    """Of each prompt's mean score under two policies, `second` minus `first`.

    The p-value is two-sided, of the permutation test that flips the sign of each prompt's difference: exact up to MOST_EXACT prompts
    that differ, else of FLIPS random flips. Raises ValueError for none, or for lists of different lengths.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"a paired test needs the same prompts twice; there are {len(first)} and {len(second)} scores")
    values_P = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    differing = values_P[values_P != 0]
    exact = len(differing) <= MOST_EXACT
    low, high = difference_interval(values_P, level)
    p_value = _exact_p_value(differing) if exact else _sampled_p_value(differing)
    return PairedTest(len(values_P), len(differing), float(values_P.mean()), low, high, p_value, exact)


def difference_interval(values_P: Values, level: float = LEVEL) -> tuple[float, float]:
    """mean_interval of differences in [-1, 1]: scores are mapped to [0, 1] and back, for prompts that all differ alike."""
    low, high = mean_interval(((values_P + 1.0) / 2).tolist(), level)
    return 2 * low - 1, 2 * high - 1


def _exact_p_value(differing: Values) -> float:
    sums = np.zeros(1)
    for value in np.abs(differing):
        sums = np.concatenate([sums + value, sums - value])
    return float(np.mean(_as_large(sums, differing)))


def _sampled_p_value(differing: Values) -> float:
    generator, found = np.random.Generator(np.random.Philox(key=1)), 0
    rows = max(1, _AT_ONCE // len(differing))
    for start in range(0, FLIPS, rows):
        signs = generator.integers(0, 2, (min(rows, FLIPS - start), len(differing)), dtype=np.int8) * 2.0 - 1.0
        found += int(_as_large(signs @ np.abs(differing), differing).sum())
    return (found + 1) / (FLIPS + 1)


def _as_large(sums: Values, differing: Values) -> npt.NDArray[np.bool_]:
    """Where a sum of flipped differences is as far from 0 as the observed one; what rounding alone tells apart counts as equal."""
    observed, total = float(differing.sum()), float(np.abs(differing).sum())
    large: npt.NDArray[np.bool_] = np.abs(sums) >= abs(observed) - 1e-9 * total
    return large
