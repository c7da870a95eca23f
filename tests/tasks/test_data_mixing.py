"""The order of draws: every row once an epoch, every source its part, from the draw's number alone."""

from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_entropic.tasks.data.mixing import Mixture
from megatron_entropic.tasks.data.permutation import SMALL, Permutation


@settings(max_examples=40)
@given(st.integers(1, 300), st.text(max_size=5))
def test_a_short_order_holds_everything_once(n: int, key: str) -> None:
    assert sorted(Permutation(n, key)[place] for place in range(n)) == list(range(n))


@pytest.mark.parametrize("n", [SMALL + 1, 1 << 15])
def test_a_long_order_holds_everything_once_and_mixes_it(n: int) -> None:
    permutation = Permutation(n, "a")
    order = [permutation[place] for place in range(n)]
    assert sorted(order) == list(range(n))
    far = sum(abs(order[place] - order[place + 1]) for place in range(n - 1)) / (n - 1)
    assert far == pytest.approx(n / 3, rel=0.03)  # as of independent uniform ones
    assert abs(sum(place * at for place, at in enumerate(order)) / n - (n - 1) ** 2 / 4) < n**2 / 100  # no trend
    other = Permutation(n, "b")
    assert sum(order[place] == other[place] for place in range(n)) < 20


def test_an_order_is_the_same_everywhere() -> None:
    """Written down: a resumed run and another machine draw what these numbers say."""
    assert [Permutation(1_000_000, "data 0 0 0")[place] for place in range(4)] == [810495, 182840, 144629, 370746]
    assert [Permutation(10, "data 0 0 0")[place] for place in range(10)] == [9, 0, 4, 6, 2, 1, 8, 5, 3, 7]


def test_one_place_of_a_huge_order_costs_nothing_much() -> None:
    n = 10**12
    assert len({Permutation(n, "x")[place] for place in range(0, n, n // 100)}) == 100


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.integers(1, 30), st.floats(0.01, 100).map(lambda weight: round(weight, 2))), min_size=1, max_size=5),
    st.integers(0, 2**40),
    st.integers(0, 5),
)
def test_every_source_has_its_part_of_any_stretch(sources: list[tuple[int, float]], start: int, seed: int) -> None:
    sizes, weights = zip(*sources, strict=True)
    mixture, count = Mixture(sizes, weights, seed), 200
    drawn = Counter(mixture[number].source for number in range(start, start + count))
    total = sum(Fraction(str(weight)) for weight in weights)
    for source, weight in enumerate(weights):
        assert abs(drawn[source] - count * Fraction(str(weight)) / total) <= len(sizes)


@settings(max_examples=40)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=3), st.integers(0, 3))
def test_within_a_source_every_row_comes_once_an_epoch(sizes: list[int], seed: int) -> None:
    mixture = Mixture(sizes, [1.0 + number for number in range(len(sizes))], seed)
    draws = [mixture[number] for number in range(150)]
    for source, size in enumerate(sizes):
        own = [(draw.epoch, draw.place) for draw in draws if draw.source == source]
        for epoch in range(len(own) // size):
            assert {place for _, place in own[epoch * size : (epoch + 1) * size]} == set(range(size))
            assert {number for number, _ in own[epoch * size : (epoch + 1) * size]} == {epoch}


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return [Mixture([50], [1.0], seed)[epoch * 50 + place].place for place in range(50)]

    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9
