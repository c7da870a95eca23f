"""Clip-Cov's and KL-Cov's choices against the definitions, written out on Python numbers; and what their losses do to gradients."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_entropic.algorithms import clip_cov_selection, clipped_policy_loss, kl_cov_penalty, kl_cov_selection, ratio_clipped
from megatron_entropic.algorithms.covariance import token_covariance

Tokens = list[tuple[float, float]]
tokens = st.lists(st.tuples(st.floats(-20, 0, width=32), st.floats(-3, 3, width=32)), min_size=1, max_size=60)
shares = st.floats(1e-4, 1.0)


def covariances(values: Tokens) -> list[float]:
    """The definition, in float64."""
    mean_log_prob = math.fsum(log_prob for log_prob, _ in values) / len(values)
    mean_advantage = math.fsum(advantage for _, advantage in values) / len(values)
    return [(log_prob - mean_log_prob) * (advantage - mean_advantage) for log_prob, advantage in values]


def tensors(values: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([log_prob for log_prob, _ in values]), torch.tensor([advantage for _, advantage in values])


def draw(values: Tokens, share: float, low: float, high: float, seed: int = 0, clipped: list[bool] | None = None) -> list[bool]:
    clipped_N = None if clipped is None else torch.tensor(clipped)
    generator = torch.Generator().manual_seed(seed)
    return clip_cov_selection(*tensors(values), share=share, low=low, high=high, generator=generator, clipped_N=clipped_N).tolist()


@given(tokens)
def test_covariance_is_the_definition(values: Tokens) -> None:
    assert token_covariance(*tensors(values)).tolist() == pytest.approx(covariances(values), rel=1e-9, abs=1e-9)


@given(tokens, shares)
def test_kl_cov_takes_the_largest(values: Tokens, share: float) -> None:
    selected = kl_cov_selection(*tensors(values), share=share).tolist()
    expected = covariances(values)
    assert sum(selected) == max(1, int(share * len(values)))
    taken = [covariance for covariance, is_taken in zip(expected, selected, strict=True) if is_taken]
    left = [covariance for covariance, is_taken in zip(expected, selected, strict=True) if not is_taken]
    assert min(taken) >= max(left, default=-math.inf) - 1e-9


@given(tokens, shares, st.floats(-1, 1), st.floats(0, 3), st.integers(0, 2**40), st.data())
def test_clip_cov_draws_from_the_candidates(
    values: Tokens, share: float, low: float, width: float, seed: int, data: st.DataObject
) -> None:
    high = low + width
    clipped = data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    expected = covariances(values)
    slack = 1e-9
    sure = sum(low + slack < cov < high - slack and not out for cov, out in zip(expected, clipped, strict=True))
    possible = [low - slack < cov < high + slack and not out for cov, out in zip(expected, clipped, strict=True)]
    count = max(1, int(share * len(values)))
    selected = draw(values, share, low, high, seed, clipped)
    assert min(count, sure) <= sum(selected) <= min(count, sum(possible))
    assert not any(is_taken and not is_possible for is_taken, is_possible in zip(selected, possible, strict=True))


def test_ties_go_to_the_lowest_place() -> None:
    equal = [(-1.0, 1.0), (-3.0, -1.0)] * 2
    assert kl_cov_selection(*tensors(equal), share=0.5).tolist() == [True, True, False, False]


def test_the_draw_is_uniform_and_repeats_with_its_seed() -> None:
    values = [(-1.0 + 0.001 * place, 1.0) for place in range(5)] + [(-9.0, -1.0)] * 5
    assert all(draw(values, 1.0, 1.0, 100.0))
    draws = [draw(values, 0.2, 1.0, 100.0, seed) for seed in range(4000)]
    assert all(sum(selected) == 2 for selected in draws)
    assert draws[7] == draw(values, 0.2, 1.0, 100.0, 7)
    for place in range(10):  # binomial: 800 expected of 4000, standard deviation 25
        assert abs(sum(selected[place] for selected in draws) - 800) < 125


def test_a_candidate_more_leaves_the_draw_of_the_others_alone() -> None:
    values = [(-1.0, 1.0), (-2.5, 1.0), (-8.0, -1.0), (-8.6, -1.0)]
    bounds = sorted(covariances(values))
    for seed in range(20):
        narrow = draw(values, 1.0, bounds[0] + 1e-6, 100.0, seed)
        wide = draw(values, 1.0, bounds[0] - 1e-6, 100.0, seed)
        assert sum(a != b for a, b in zip(narrow, wide, strict=True)) == 1


def test_no_tokens_choose_nothing() -> None:
    empty_N = torch.zeros(0)
    assert kl_cov_selection(empty_N, empty_N, share=0.5).shape == (0,)
    assert clip_cov_selection(empty_N, empty_N, share=0.5, low=1, high=5, generator=torch.Generator()).shape == (0,)


def test_clipped_tokens_are_those_without_a_gradient() -> None:
    ratio_T = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1, 0.9], requires_grad=True)
    advantage_T = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])
    clipped_policy_loss(ratio_T, advantage_T, clip_low=0.2, clip_high=0.3).sum().backward()
    assert ratio_T.grad is not None
    assert ratio_clipped(ratio_T, advantage_T, clip_low=0.2, clip_high=0.3).tolist() == (ratio_T.grad == 0).tolist()


def test_the_penalty_pulls_selected_tokens_back() -> None:
    log_ratio_T = torch.tensor([0.5, -0.25, 0.0, 0.5], requires_grad=True)
    penalty_T = kl_cov_penalty(log_ratio_T, torch.tensor([True, True, True, False]), torch.tensor([1.0, 2.0, 1.0, 1.0]))
    penalty_T.sum().backward()
    assert penalty_T.tolist() == [0.5, 0.5, 0.0, 0.0]
    assert log_ratio_T.grad is not None
    assert log_ratio_T.grad.tolist() == [1.0, -2.0, 0.0, 0.0]
