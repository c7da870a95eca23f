"""Pure tensor functions: advantages, loss terms, actuators. No collectives, no state."""

from .actuators import actuator_mask
from .advantages import group_advantages
from .policy_loss import clipped_policy_loss, entropic_adjustment, entropy_bonus, truncated_importance_weight

__all__ = [
    "actuator_mask",
    "clipped_policy_loss",
    "entropic_adjustment",
    "entropy_bonus",
    "group_advantages",
    "truncated_importance_weight",
]
