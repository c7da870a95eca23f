"""The loss of one micro-batch, and what is measured on the way: sums only, so that every mean is global.

Shapes: T packed positions, H hidden size.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple, TypedDict

import torch
from torch import Tensor

from megatron_entropic.algorithms import (
    actuator_mask,
    entropic_adjustment,
    entropy_bonus,
    entropy_lowering,
    make_policy_loss,
    ratio_clipped,
    truncated_importance_weight,
)
from megatron_entropic.config import AlgorithmConfig, Config, ControlConfig, RolloutConfig
from megatron_entropic.control import Coefficients
from megatron_entropic.control.kinds import TokenLoss, kind_of
from megatron_entropic.entropy import TokenStatistics
from megatron_entropic.policy.batching import MicroBatch

CONTROL_SUMS = ("tokens", "entropy", "clamped_entropy", "active", "authority", "pressure", "bonus_authority")
"""Sums over response tokens that entropy control steers by; their means: control/measurement.py."""

SUMS = ("policy_loss", "total_loss", "clipped", "actuated", "selected", "high_prob", "gap", "kl_old")
"""Further sums over response tokens that `micro_batch_loss` reports."""

MAXIMA = ("gap_max",)
"""Maxima over response tokens that `micro_batch_loss` reports."""


class ClipRange(TypedDict):
    """Arguments of clipped_policy_loss and ratio_clipped."""

    clip_low: float
    clip_high: float


class TokenLosses(NamedTuple):
    """What the loss of each token is made of, [T] each: see Objective.token_losses."""

    policy_T: Tensor
    total_T: Tensor
    log_ratio_T: Tensor
    actuator_T: Tensor
    before_T: Tensor
    old_T: Tensor


@dataclass(frozen=True)
class Objective:
    """Everything one update's loss depends on beside the tokens.

        L = (1/N) sum_t [ policy_t + alpha (N/D) adjust_t - c Hc_t - c' H_t ]

    N is the number of response tokens of the mini-batch; `adjustment_scale` is N/D (1 when D = N). On the batch's selected tokens
    the kind of control changes policy_t or adds a term: Clip-Cov leaves it out, KL-Cov adds its penalty.
    """

    cfg: Config
    coefficients: Coefficients
    adjustment_scale: float = 1.0

    def micro_batch_loss(
        self, stats: TokenStatistics, batch: MicroBatch, measured: TokenStatistics | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of the loss over the micro-batch's response tokens, and the CONTROL_SUMS, SUMS and MAXIMA (float64 scalars).

        Args:
            stats: of the targets, [T] each; what the loss needs carries gradients.
            measured: the statistics whose entropies are reported, when these are not the loss's own (another temperature).
        """
        control = self.cfg.control
        mask_T, advantage_T = batch.mask_T, batch.advantages_T
        current_T, entropy_T = stats.log_prob.detach(), stats.entropy.detach()
        policy_T, total_T, log_ratio_T, actuator_T, before_T, old_T = self.token_losses(stats, batch)

        def total(values_T: Tensor) -> Tensor:
            return values_T.detach()[mask_T].sum(dtype=torch.float64)

        measured = measured or stats
        clamped_T = torch.zeros_like(entropy_T) if measured.clamped_entropy is None else measured.clamped_entropy
        lowers_T, own_T = entropy_lowering(current_T, entropy_T, stats.mean_lowering), entropy_lowering(current_T, entropy_T)
        clipped_T = ratio_clipped(log_ratio_T.exp(), advantage_T, **clip_range(self.cfg.algorithm, control))
        gap_T = torch.where(mask_T, (before_T - batch.sampler_log_probs_T).abs(), 0.0)
        sums = {
            "tokens": total(mask_T),
            "entropy": total(measured.entropy),
            "clamped_entropy": total(clamped_T),
            "active": total(advantage_T != 0),
            "authority": total(advantage_T.abs() * actuator_T * lowers_T),
            "pressure": total(advantage_T * lowers_T),
            "bonus_authority": total(own_T * (current_T + entropy_T)),
            "policy_loss": total(policy_T),
            "total_loss": total(total_T),
            "clipped": total(clipped_T),
            "actuated": total(actuator_T.abs()),
            "selected": total(torch.zeros_like(mask_T) if batch.selected_T is None else batch.selected_T),
            "high_prob": total(current_T > math.log(control.high_prob_threshold)),
            "gap": total(gap_T),
            "kl_old": total(old_T - current_T),
            "gap_max": gap_T.max().double(),
        }
        return total_T[mask_T].sum(), sums

    def token_losses(self, stats: TokenStatistics, batch: MicroBatch) -> TokenLosses:
        """The loss of each token and what it is made of.

        policy_T, total_T: the policy loss, and with the control's terms; they and log_ratio_T carry gradients. actuator_T: m_t.
        before_T, old_T: log-probs under the policy before the step, and those of the ratio.
        """
        control = self.cfg.control
        current_T, entropy_T = stats.log_prob.detach(), stats.entropy.detach()
        before_T = current_T if batch.old_log_probs_T is None else batch.old_log_probs_T
        old_T = old_log_probs(self.cfg.algorithm, self.cfg.rollout, before_T, batch.sampler_log_probs_T)
        log_ratio_T = stats.log_prob - old_T
        tau, mean_T = control.high_prob_threshold, stats.mean_lowering  # the mean only where the actuator is exact
        actuator_T = actuator_mask(control.actuator, current_T, entropy_T, mean_lowering_T=mean_T, high_prob_threshold=tau)
        policy_T, total_T = self._terms(stats, batch, log_ratio_T, old_T, actuator_T)
        return TokenLosses(policy_T, total_T, log_ratio_T, actuator_T, before_T, old_T)

    def _terms(
        self, stats: TokenStatistics, batch: MicroBatch, log_ratio_T: Tensor, old_T: Tensor, actuator_T: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(policy loss, loss with the control's terms) of each token."""
        algorithm, control = self.cfg.algorithm, self.cfg.control
        coefficients, advantage_T, ratio_T = self.coefficients, batch.advantages_T, log_ratio_T.exp()
        weight_T = None
        if algorithm.sampler_correction_cap:
            weight_T = truncated_importance_weight(old_T, batch.sampler_log_probs_T, algorithm.sampler_correction_cap)
        if coefficients.positive_weight != 1.0:
            reinforced_T = torch.where(advantage_T > 0, coefficients.positive_weight, 1.0)
            weight_T = reinforced_T if weight_T is None else weight_T * reinforced_T
        policy_T = make_policy_loss(algorithm.policy_loss)(
            ratio_T, advantage_T, **clip_range(self.cfg.algorithm, control), weight_T=weight_T
        )
        added_T = None
        if (selection := kind_of(control).selection) and batch.selected_T is not None:
            policy_T, added_T = selection.change(control, TokenLoss(policy_T, log_ratio_T, batch.selected_T, weight_T))
        total_T = policy_T if added_T is None else policy_T + added_T
        if coefficients.alpha:
            adjust_T = entropic_adjustment(ratio_T, advantage_T, actuator_T, weight_T)
            total_T = total_T + coefficients.alpha * self.adjustment_scale * adjust_T
        if coefficients.bonus:
            assert stats.clamped_entropy is not None
            total_T = total_T + coefficients.bonus * entropy_bonus(stats.clamped_entropy)
        if coefficients.entropy_bonus:
            total_T = total_T + coefficients.entropy_bonus * entropy_bonus(stats.entropy)
        return policy_T, total_T


def old_log_probs(algorithm: AlgorithmConfig, rollout: RolloutConfig, before_T: Tensor, sampler_T: Tensor) -> Tensor:
    """lp_old of the ratio r_t = exp(lp_t - lp_old_t): the policy before the step, or the sampler itself.

    Rollouts from older weights need a correction. With a cap, r_t is to the policy before the step and the truncated
    weight w_t = pi_old / pi_sampler corrects (decoupled PPO); without one, r_t = pi / pi_sampler is the correction.
    """
    stale = rollout.max_staleness > 0
    return sampler_T if stale and not algorithm.sampler_correction_cap else before_T


def clip_range(algorithm: AlgorithmConfig, control: ControlConfig) -> ClipRange:
    """Clip range of r_t. KL-Cov has a penalty in place of the clip, in the paper and in the authors' code."""
    selection = kind_of(control).selection
    if selection is not None and not selection.clips_ratio:
        return {"clip_low": 1.0, "clip_high": math.inf}
    return {"clip_low": algorithm.clip_low, "clip_high": algorithm.clip_high}
