"""Pure tensor functions: advantages, loss terms, actuators. No collectives, no state."""

from megatron_entropic.algorithms.actuators import actuator_mask, entropy_lowering
from megatron_entropic.algorithms.advantages import group_advantages
from megatron_entropic.algorithms.policy_loss import (
    clipped_policy_loss,
    entropic_adjustment,
    entropy_bonus,
    truncated_importance_weight,
)

__all__ = [
    "actuator_mask",
    "clipped_policy_loss",
    "entropic_adjustment",
    "entropy_bonus",
    "entropy_lowering",
    "group_advantages",
    "truncated_importance_weight",
]
