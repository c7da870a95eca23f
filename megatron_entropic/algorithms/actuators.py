"""Actuators: which tokens EntroPIC's alpha re-weights, and with which sign.

Shapes: T tokens. Nothing here carries a gradient: an actuator is a mask, not a loss.
"""

import math
from typing import get_args

import torch
from torch import Tensor

from megatron_entropic.config.control import Actuator

ROUNDINGS = 64
"""Phi below so many roundings of its terms is 0 to "exact". pi is known to 1 eps; Phi of a token with 1 - pi << 1 is 2 (1 - pi) of its
terms, so that its sign, and whether it is left out, is the same in every layout only while 1 - pi is many eps. Left out in float32:
tokens within 4e-6 of certain, whose log-prob has next to no gradient."""


@torch.no_grad()
def actuator_mask(
    kind: Actuator,
    log_prob_T: Tensor,
    entropy_T: Tensor,
    *,
    mean_lowering_T: Tensor | None = None,
    high_prob_threshold: float = 0.95,
) -> Tensor:
    """m_t of L_adjust, from the current policy.

    To first order raising the logit of the sampled token y changes the entropy of its distribution by
    dH/dz_y = -pi(y) (log pi(y) + H): raising a token lowers H exactly when its surprisal is below the entropy.

    * "high_prob":  1[pi(y) > tau]            EntroPIC as released: a corner of the set below
    * "surprisal":  1[log pi(y) + H > 0]      every token whose raise lowers H
    * "signed":     sign(log pi(y) + H)       and its mirror image: raising the others raises H, so they are weighted oppositely
    * "exact":      sign(Phi(y))              raising log pi(y) by a gradient step lowers the other logits too: entropy_lowering

    Args:
        log_prob_T: log pi(y_t), [tokens], nats.
        entropy_T: H_t, [tokens], nats.
        mean_lowering_T: TokenStatistics.mean_lowering, [tokens], nats; "exact" needs it.
    Returns:
        [tokens] in log_prob's dtype, values in {-1, 0, 1}; of "exact" 0 where Phi is nothing but rounding, as of certain tokens.
    Raises:
        ValueError: an unknown kind, or "exact" without mean_lowering_T.
    """
    if kind == "high_prob":
        return (log_prob_T > math.log(high_prob_threshold)).to(log_prob_T.dtype)
    below_entropy_T = log_prob_T + entropy_T
    if kind == "surprisal":
        return (below_entropy_T > 0).to(log_prob_T.dtype)
    if kind == "signed":
        return torch.sign(below_entropy_T)
    if kind == "exact":
        return _sign_of_exact(log_prob_T, entropy_T, mean_lowering_T)
    raise ValueError(f"control.actuator={kind!r} is not one of {', '.join(get_args(Actuator))}")


def _sign_of_exact(log_prob_T: Tensor, entropy_T: Tensor, mean_lowering_T: Tensor | None) -> Tensor:
    """sign(Phi), 0 within ROUNDINGS of its terms: the sign of noise would differ from layout to layout."""
    if mean_lowering_T is None:
        raise ValueError("control.actuator='exact' needs mean_lowering: token_statistics(..., mean_lowering=True)")
    lowers_T, probability_T = entropy_lowering(log_prob_T, entropy_T, mean_lowering_T), log_prob_T.exp()
    size_T = probability_T * entropy_T + torch.special.entr(probability_T) + mean_lowering_T.abs()
    return torch.where(lowers_T.abs() > ROUNDINGS * torch.finfo(lowers_T.dtype).eps * size_T, torch.sign(lowers_T), 0.0)


@torch.no_grad()
def entropy_lowering(log_prob_T: Tensor, entropy_T: Tensor, mean_lowering_T: Tensor | None = None) -> Tensor:
    """-dH/dz_y = pi(y) (log pi(y) + H): by how much raising the sampled token's logit lowers the entropy of its distribution.

    With `mean_lowering_T` the whole first-order response to a gradient step on log pi(y), which moves every logit,
    dz = eta (e_y - pi): dH = -eta Phi(y), Phi(y) = pi(y) (log pi(y) + H) - E_{v~pi}[pi(v) (log pi(v) + H)]; E_{y~pi}[Phi] = 0.

    Args:
        log_prob_T: log pi(y_t), [tokens], nats.
        entropy_T: H_t, [tokens], nats.
        mean_lowering_T: the expectation in Phi, TokenStatistics.mean_lowering, [tokens], nats.
    Returns:
        [tokens], nats per unit of logit (Phi: of eta); a token of probability 0 has 0 as its first term.
    """
    probability_T = log_prob_T.exp()
    own_T = torch.where(probability_T > 0, probability_T * (log_prob_T + entropy_T), 0.0)
    return own_T if mean_lowering_T is None else own_T - mean_lowering_T
