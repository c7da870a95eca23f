"""The loss of one micro-batch, and what is measured on the way: sums only, so that every mean is global.

Shapes: T packed positions, H hidden size.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_entropic.algorithms import (
    actuator_mask,
    clipped_policy_loss,
    entropic_adjustment,
    entropy_bonus,
    truncated_importance_weight,
)
from megatron_entropic.config import Config
from megatron_entropic.control import Coefficients
from megatron_entropic.entropy import TokenStatistics
from megatron_entropic.policy.batching import MicroBatch

SUMS = (
    "tokens",
    "entropy",
    "clamped_entropy",
    "policy_loss",
    "total_loss",
    "clipped",
    "actuated",
    "high_prob",
    "gap",
    "kl_old",
)
"""Sums over response tokens that `micro_batch_loss` reports."""

MAXIMA = ("gap_max",)
"""Maxima over response tokens that `micro_batch_loss` reports."""

Statistics = Callable[[Tensor, MicroBatch], TokenStatistics]


@dataclass(frozen=True)
class Objective:
    """Everything one update's loss depends on beside the tokens.

        L = (1/N) sum_t [ policy_t + alpha (N/D) adjust_t + c bonus_t ]

    N is the number of response tokens of the mini-batch; `adjustment_scale` is N/D (1 when D = N).
    """

    cfg: Config
    coefficients: Coefficients
    adjustment_scale: float = 1.0

    def micro_batch_loss(self, stats: TokenStatistics, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of the loss over the micro-batch's response tokens, and the SUMS and MAXIMA (float64 scalars).

        Args:
            stats: of the targets, [T] each; log_prob (and clamped_entropy, with a bonus) carry gradients.
        """
        algorithm, control = self.cfg.algorithm, self.cfg.control
        mask_T, advantage_T = batch.mask_T, batch.advantages_T
        log_prob_T, entropy_T = stats.log_prob, stats.entropy.detach()
        current_T = log_prob_T.detach()
        before_T = current_T if batch.old_log_probs_T is None else batch.old_log_probs_T
        old_T = self._old_log_probs(before_T, batch)
        ratio_T = (log_prob_T - old_T).exp()
        weight_T = None
        if algorithm.sampler_correction_cap:
            weight_T = truncated_importance_weight(old_T, batch.sampler_log_probs_T, algorithm.sampler_correction_cap)
        policy_T = clipped_policy_loss(
            ratio_T, advantage_T, clip_low=algorithm.clip_low, clip_high=algorithm.clip_high, weight_T=weight_T
        )
        actuator_T = actuator_mask(control.actuator, current_T, entropy_T, high_prob_threshold=control.high_prob_threshold)
        total_T = policy_T
        if self.coefficients.alpha:
            adjust_T = entropic_adjustment(ratio_T, advantage_T, actuator_T, weight_T)
            total_T = total_T + self.coefficients.alpha * self.adjustment_scale * adjust_T
        if self.coefficients.bonus and stats.clamped_entropy is not None:
            total_T = total_T + self.coefficients.bonus * entropy_bonus(stats.clamped_entropy)

        def total(values_T: Tensor) -> Tensor:
            return values_T.detach()[mask_T].sum(dtype=torch.float64)

        clipped_T = ((ratio_T > 1 + algorithm.clip_high) & (advantage_T > 0)) | ((ratio_T < 1 - algorithm.clip_low) & (advantage_T < 0))
        gap_T = torch.where(mask_T, (before_T - batch.sampler_log_probs_T).abs(), 0.0)
        clamped_T = entropy_T.new_zeros(entropy_T.shape) if stats.clamped_entropy is None else stats.clamped_entropy
        sums = {
            "tokens": total(mask_T),
            "entropy": total(entropy_T),
            "clamped_entropy": total(clamped_T),
            "policy_loss": total(policy_T),
            "total_loss": total(total_T),
            "clipped": total(clipped_T),
            "actuated": total(actuator_T.abs()),
            "high_prob": total(current_T > torch.log(torch.tensor(control.high_prob_threshold))),
            "gap": total(gap_T),
            "kl_old": total(old_T - current_T),
            "gap_max": gap_T.max().double(),
        }
        return total_T[mask_T].sum(), sums

    def _old_log_probs(self, before_T: Tensor, batch: MicroBatch) -> Tensor:
        """lp_old of the ratio r_t = exp(lp_t - lp_old_t): the policy before the step, or the sampler itself.

        Rollouts from older weights need a correction. With a cap, r_t is to the policy before the step and the truncated
        weight w_t = pi_old / pi_sampler corrects (decoupled PPO); without one, r_t = pi / pi_sampler is the correction.
        """
        stale = self.cfg.rollout.max_staleness > 0
        return batch.sampler_log_probs_T if stale and not self.cfg.algorithm.sampler_correction_cap else before_T
