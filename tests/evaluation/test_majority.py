"""The vote among samples: by brute force over its ties, whatever their order, and what counts as the same answer."""

import itertools
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_entropic.evaluation.answers import normalised, votes
from megatron_entropic.evaluation.scores import majority_at_k, majority_reward

BALLOTS = st.lists(st.tuples(st.sampled_from(["a", "b", "c", None]), st.sampled_from([0.0, 1.0])), min_size=1, max_size=6)


@given(BALLOTS)
def test_the_majority_is_the_mean_over_all_ways_to_break_its_ties(ballots: list[tuple[str | None, float]]) -> None:
    counts = Counter(answer for answer, _ in ballots if answer is not None)
    leaders = [answer for answer, count in counts.items() if count == max(counts.values())]
    draws = [Fraction(round(reward)) for leader in leaders for answer, reward in ballots if answer == leader]
    expected = sum(draws, Fraction(0)) / len(draws) if draws else Fraction(0)
    assert majority_reward(*zip(*ballots, strict=True)) == pytest.approx(float(expected))


@given(BALLOTS)
def test_no_order_of_samples_changes_the_majority(ballots: list[tuple[str | None, float]]) -> None:
    orders = itertools.islice(itertools.permutations(ballots), 24)
    assert len({round(majority_reward(*zip(*order, strict=True)), 12) for order in orders}) == 1


def test_majority_at_k_by_hand() -> None:
    votes_PS = [["x", "x", "y"], ["x", "y", None], [None, None, None]]
    assert majority_at_k(votes_PS, [[1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]) == pytest.approx((1.0 + 0.5 + 0.0) / 3)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"so \boxed{\dfrac{1}{2}}", r"\boxed{ \frac 12 }"),
        ("it is <answer> 42 </answer>", "42"),
        (r"no, \boxed{1}, rather \boxed{2}", r"\boxed{2}"),
        ("100+23", " 100+23\n"),
        ("2 * 21 = 42\n#### 42", r"\boxed{42}"),
    ],
)
def test_answers_that_differ_in_looks_alone_are_one(one: str, other: str) -> None:
    assert normalised(one) == normalised(other) is not None


@pytest.mark.parametrize("response", ["", "   ", r"\boxed{" + "x" * 2000 + "}", "y" * 5000])
def test_what_is_no_final_answer_has_no_vote(response: str) -> None:
    assert normalised(response) is None


def test_what_the_verifier_found_right_is_one_answer_where_only_one_is_right() -> None:
    texts, rewards = [r"\boxed{0.5}", r"\boxed{1/2}", r"\boxed{3}", r"\boxed{3}"], [1.0, 1.0, 0.0, 0.0]
    known = votes(texts, rewards, {"answer": "1/2"})
    assert known[0] == known[1] != known[2] == known[3]
    many = votes(["1+2", "2+1"], [1.0, 1.0], {"total": 3})
    assert many[0] != many[1]
