"""The loss terms by hand, and the claims their docstrings make."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_entropic.algorithms import (
    actuator_mask,
    clipped_policy_loss,
    entropic_adjustment,
    entropy_lowering,
    group_advantages,
    leave_one_out_advantages,
    truncated_importance_weight,
)
from megatron_entropic.entropy import token_statistics


def test_group_advantages_by_hand() -> None:
    rewards_PS = torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    std = math.sqrt(4 * 0.25 / 3)
    advantages_PS = group_advantages(rewards_PS)
    assert torch.allclose(advantages_PS[0], torch.tensor([0.5, -0.5, -0.5, 0.5]) / (std + 1e-6))
    assert torch.equal(advantages_PS[1], torch.zeros(4))
    assert torch.equal(group_advantages(rewards_PS, normalize_std=False)[0], torch.tensor([0.5, -0.5, -0.5, 0.5]))


@given(st.floats(-1e6, 1e6, width=32), st.integers(1, 9))
def test_equal_rewards_have_no_advantage(reward: float, samples: int) -> None:
    assert torch.equal(group_advantages(torch.full((2, samples), reward)), torch.zeros(2, samples))


def test_group_advantages_names_the_bad_reward() -> None:
    with pytest.raises(ValueError, match="prompt 1, sample 2"):
        group_advantages(torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, math.nan]]))


def test_clip_is_asymmetric_and_pessimistic() -> None:
    ratio_T = torch.tensor([1.5, 1.5, 0.5, 0.5])
    advantage_T = torch.tensor([1.0, -1.0, 1.0, -1.0])
    loss_T = clipped_policy_loss(ratio_T, advantage_T, clip_low=0.2, clip_high=0.3)
    assert torch.allclose(loss_T, torch.tensor([-1.3, 1.5, -0.5, 0.8]))


@given(st.floats(-1, 1), st.sampled_from([2.0, -3.0]))
def test_alpha_weights_masked_tokens_one_plus_or_minus_alpha(alpha: float, advantage: float) -> None:
    log_prob_T = torch.tensor([-0.01, -2.0], dtype=torch.float64, requires_grad=True)  # 1 - alpha cancels
    advantage_T = torch.full((2,), advantage, dtype=torch.float64)
    ratio_T = (log_prob_T - log_prob_T.detach()).exp()
    mask_T = actuator_mask("high_prob", log_prob_T, torch.zeros(2))
    loss_T = clipped_policy_loss(ratio_T, advantage_T, clip_low=0.2, clip_high=0.2)
    (loss_T + alpha * entropic_adjustment(ratio_T, advantage_T, mask_T)).sum().backward()
    weight = 1 + alpha if advantage > 0 else 1 - alpha
    assert log_prob_T.grad is not None
    assert log_prob_T.grad.tolist() == pytest.approx([-advantage * weight, -advantage], rel=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_surprisal_tells_which_raise_lowers_entropy(seed: int) -> None:
    """The first-order criterion of the docstring, checked by differentiating the entropy itself."""
    logits_V = torch.randn(7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64, requires_grad=True)
    log_prob_V = logits_V.log_softmax(0)
    entropy = -(log_prob_V.exp() * log_prob_V).sum()
    (gradient_V,) = torch.autograd.grad(entropy, logits_V)
    signed_V = actuator_mask("signed", log_prob_V.detach(), entropy.detach().expand(7))
    assert torch.equal(signed_V, -torch.sign(gradient_V))
    surprisal_V = actuator_mask("surprisal", log_prob_V.detach(), entropy.detach().expand(7))
    assert torch.equal(surprisal_V, (gradient_V < 0).double())


@given(st.integers(0, 10_000), st.floats(0.1, 4.0), st.sampled_from([1.0, -0.7]))
def test_exact_lowering_is_what_a_small_step_does(seed: int, sharpness: float, advantage: float) -> None:
    """A finite step dz = eta A (e_y - pi) on the logits changes H by -eta A Phi(y), up to order eta^2."""
    logits_V = torch.randn(7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * sharpness
    eta, log_prob_V = 1e-5, logits_V.log_softmax(0)
    entropy_V = entropy_of(logits_V).expand(7)
    mean_V = (log_prob_V.exp() ** 2 * (log_prob_V + entropy_V)).sum().expand(7)
    phi_V = entropy_lowering(log_prob_V, entropy_V, mean_V)
    assert abs(float((log_prob_V.exp() * phi_V).sum())) < 1e-14
    step_VV = eta * advantage * (torch.eye(7, dtype=torch.float64) - log_prob_V.exp())  # a row: the step on that token
    change_V = (entropy_of(logits_V + step_VV) - entropy_of(logits_V - step_VV)) / 2  # of odd order alone
    assert torch.allclose(change_V, -eta * advantage * phi_V, rtol=1e-6, atol=1e-14)
    sign_V = actuator_mask("exact", log_prob_V, entropy_V, mean_lowering_T=mean_V)
    clear_V = phi_V.abs() > 1e-6
    assert torch.equal(sign_V[clear_V], -torch.sign(change_V * advantage)[clear_V])


def entropy_of(logits_V: torch.Tensor) -> torch.Tensor:
    log_prob_V = logits_V.log_softmax(-1)
    return -(log_prob_V.exp() * log_prob_V).sum(-1)


def test_exact_differs_from_signed_where_the_other_logits_matter() -> None:
    """One token of 0.5, fifty of 0.01: raising a rare one lowers the common one too, more than `signed` sees."""
    logits_V = torch.cat([torch.tensor([0.5]), torch.full((50,), 0.01)]).log()
    statistics = token_statistics(logits_V.expand(51, 51), torch.arange(51), vocab_size=51, mean_lowering=True)
    lowering_V = entropy_lowering(statistics.log_prob, statistics.entropy, statistics.mean_lowering)
    assert abs(float(statistics.log_prob.exp() @ lowering_V)) < 1e-7
    exact_V = actuator_mask("exact", statistics.log_prob, statistics.entropy, mean_lowering_T=statistics.mean_lowering)
    assert exact_V.tolist() == [1.0] + [-1.0] * 50


@pytest.mark.parametrize("rest", [1e-7, 3e-7, 1e-6, 2e-5, 1e-3])
def test_exact_says_of_nearly_certain_tokens_what_float64_says_or_nothing(rest: float) -> None:
    logits_BV = torch.tensor([[0.0, math.log(rest) + shift, math.log(rest) - 1] for shift in torch.linspace(0, 1, 50).tolist()])
    statistics = token_statistics(logits_BV, torch.zeros(50, dtype=torch.int64), vocab_size=3, mean_lowering=True)
    sign_B = actuator_mask("exact", statistics.log_prob, statistics.entropy, mean_lowering_T=statistics.mean_lowering)
    assert set(sign_B.tolist()) == {1.0 if rest > 1e-5 else 0.0}


@pytest.mark.parametrize("others", [-40.0, -1e4, -math.inf, 3.0])
def test_exact_leaves_alone_what_is_only_rounding(others: float) -> None:
    """Certain tokens (an impossible one beside them) and equal ones: Phi is 0."""
    logits_V = torch.tensor([3.0, others, others, others])
    statistics = token_statistics(logits_V.expand(2, 4), torch.tensor([0, 1]), vocab_size=4, mean_lowering=True)
    mask_T = actuator_mask("exact", statistics.log_prob, statistics.entropy, mean_lowering_T=statistics.mean_lowering)
    assert mask_T.tolist()[0] == 0
    assert mask_T.isfinite().all()


def test_exact_without_its_mean_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"needs mean_lowering: token_statistics\(\.\.\., mean_lowering=True\)"):
        actuator_mask("exact", torch.zeros(1), torch.zeros(1))


def test_importance_weight_is_truncated_and_carries_no_gradient() -> None:
    old_T = torch.tensor([0.0, -1.0], requires_grad=True)
    weight_T = truncated_importance_weight(old_T, torch.tensor([-2.0, -1.0]), cap=2.0)
    assert weight_T.tolist() == [2.0, 1.0]
    assert not weight_T.requires_grad


def test_leave_one_out_advantages_by_hand() -> None:
    rewards_PS = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.3, 0.3, 0.3, 0.3], [2.0, 0.0, 1.0, 1.0]])
    advantages_PS = leave_one_out_advantages(rewards_PS)
    for rewards, advantages in zip(rewards_PS.tolist(), advantages_PS.tolist(), strict=True):
        for s, advantage in enumerate(advantages):
            others = [reward for q, reward in enumerate(rewards) if q != s]
            assert advantage == pytest.approx(rewards[s] - sum(others) / 3, abs=1e-6)
    assert advantages_PS[1].tolist() == [0.0] * 4
    assert leave_one_out_advantages(torch.tensor([[1.0]])).tolist() == [[0.0]]
    with pytest.raises(ValueError, match="reward of prompt 0, sample 1 is nan"):
        leave_one_out_advantages(torch.tensor([[1.0, float("nan")]]))
