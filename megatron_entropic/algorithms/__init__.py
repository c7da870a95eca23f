"""Pure tensor functions: advantages, loss terms, actuators, choices of tokens. No collectives, no state."""

from megatron_entropic.algorithms.actuators import actuator_mask, entropy_lowering
from megatron_entropic.algorithms.advantages import group_advantages, leave_one_out_advantages, make_advantage
from megatron_entropic.algorithms.covariance import clip_cov_selection, kl_cov_selection
from megatron_entropic.algorithms.policy_loss import (
    clipped_policy_loss,
    entropic_adjustment,
    entropy_bonus,
    kl_cov_penalty,
    make_policy_loss,
    ratio_clipped,
    truncated_importance_weight,
)

__all__ = [
    "actuator_mask",
    "clip_cov_selection",
    "clipped_policy_loss",
    "entropic_adjustment",
    "entropy_bonus",
    "entropy_lowering",
    "group_advantages",
    "kl_cov_penalty",
    "kl_cov_selection",
    "leave_one_out_advantages",
    "make_advantage",
    "make_policy_loss",
    "ratio_clipped",
    "truncated_importance_weight",
]
