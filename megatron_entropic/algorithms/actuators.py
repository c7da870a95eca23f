"""Actuators: which tokens EntroPIC's alpha re-weights, and with which sign.

Shapes: T tokens. Nothing here carries a gradient: an actuator is a mask, not a loss.
"""

import math

import torch
from torch import Tensor

from megatron_entropic.config_control import Actuator


@torch.no_grad()
def actuator_mask(kind: Actuator, log_prob_T: Tensor, entropy_T: Tensor, *, high_prob_threshold: float = 0.95) -> Tensor:
    """m_t of L_adjust, from the current policy.

    To first order raising the logit of the sampled token y changes the entropy of its distribution by
    dH/dz_y = -pi(y) (log pi(y) + H): raising a token lowers H exactly when its surprisal is below the entropy.

    * "high_prob":  1[pi(y) > tau]            EntroPIC as released: a corner of the set below
    * "surprisal":  1[log pi(y) + H > 0]      every token whose raise lowers H
    * "signed":     sign(log pi(y) + H)       and its mirror image: raising the others raises H, so they are weighted oppositely

    Args:
        log_prob_T: log pi(y_t), [tokens], nats.
        entropy_T: H_t, [tokens], nats.
    Returns:
        [tokens] in log_prob's dtype, values in {-1, 0, 1}.
    """
    if kind == "high_prob":
        return (log_prob_T > math.log(high_prob_threshold)).to(log_prob_T.dtype)
    below_entropy_T = log_prob_T + entropy_T
    if kind == "surprisal":
        return (below_entropy_T > 0).to(log_prob_T.dtype)
    if kind == "signed":
        return torch.sign(below_entropy_T)
    raise ValueError(f"control.actuator={kind!r} is not one of high_prob, surprisal, signed")


@torch.no_grad()
def entropy_lowering(log_prob_T: Tensor, entropy_T: Tensor) -> Tensor:
    """-dH/dz_y = pi(y) (log pi(y) + H): by how much raising the sampled token's logit lowers the entropy of its distribution.

    Args:
        log_prob_T: log pi(y_t), [tokens], nats.
        entropy_T: H_t, [tokens], nats.
    Returns:
        [tokens], nats per unit of logit; 0 for a token of probability 0.
    """
    probability_T = log_prob_T.exp()
    return torch.where(probability_T > 0, probability_T * (log_prob_T + entropy_T), 0.0)
