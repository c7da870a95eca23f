"""Actuators: which tokens EntroPIC's alpha re-weights, and with which sign.

To first order raising the logit of the sampled token y changes the entropy of its distribution by
dH/dz_y = -pi(y) (log pi(y) + H): raising a token lowers H exactly when its surprisal is below the entropy.

* "high_prob":  1[pi(y) > tau]            EntroPIC as released: a corner of the set below
* "surprisal":  1[log pi(y) + H > 0]      every token whose raise lowers H
* "signed":     sign(log pi(y) + H)       and its mirror image: raising the others raises H, so they are weighted oppositely
* "exact":      sign(Phi(y))              raising log pi(y) by a gradient step lowers the other logits too: entropy_lowering

The table is `ACTUATORS` in config/control.py; an actuator of your own is a function or a record in a module or file of yours.

Shapes: T tokens. Nothing here carries a gradient: an actuator is a mask, not a loss.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from megatron_entropic.config.control import ACTUATOR_ENTRY_POINTS, ACTUATORS
from megatron_entropic.system.named_functions import named_object, raised

ROUNDINGS = 64
"""Phi below so many roundings of its terms is 0 to "exact". pi is known to 1 eps; Phi of a token with 1 - pi << 1 is 2 (1 - pi) of its
terms, so that its sign, and whether it is left out, is the same in every layout only while 1 - pi is many eps. Left out in float32:
tokens within 4e-6 of certain, whose log-prob has next to no gradient."""


@dataclass(frozen=True)
class TokenView:
    """Per-token inputs of an actuator, [T] each, from the current policy, without gradient.

    log_prob_T: log pi(y_t), nats. entropy_T: H_t, nats. mean_lowering_T: TokenStatistics.mean_lowering, nats; None unless the
    actuator asks for it. high_prob_threshold: `control.high_prob_threshold`.
    """

    log_prob_T: Tensor
    entropy_T: Tensor
    mean_lowering_T: Tensor | None = None
    high_prob_threshold: float = 0.95


@dataclass(frozen=True)
class Actuator:
    """One value of `control.actuator`.

    weights: m_t of L_adjust, [T], within -1 and 1; positive where raising the token lowers the entropy.
    needs_mean_lowering: whether it reads `mean_lowering_T`, which costs two more sums over the vocabulary.
    """

    weights: Callable[[TokenView], Tensor]
    needs_mean_lowering: bool = False


@cache
def find_actuator(name: str) -> Actuator:
    """The actuator that `control.actuator` names; a function of the user's alone is one without mean lowering.

    Raises ValueError naming what is missing.
    """
    found = named_object("control.actuator", name, ACTUATORS, ACTUATOR_ENTRY_POINTS)
    if isinstance(found, Actuator):
        return found
    if not callable(found):
        raise ValueError(f"control.actuator={name}: {name.rpartition(':')[2]} is neither an Actuator nor a function")
    return Actuator(found)


@torch.no_grad()
def actuator_mask(
    name: str,
    log_prob_T: Tensor,
    entropy_T: Tensor,
    *,
    mean_lowering_T: Tensor | None = None,
    high_prob_threshold: float = 0.95,
) -> Tensor:
    """m_t of L_adjust by the actuator of that name; arguments as in TokenView.

    Returns:
        [tokens] in log_prob's dtype, within -1 and 1; of "exact" 0 where Phi is nothing but rounding, as of certain tokens.
    Raises:
        ValueError: an unknown name, "exact" without mean_lowering_T, or one from outside that raises or returns anything else.
    """
    actuator, view = find_actuator(name), TokenView(log_prob_T, entropy_T, mean_lowering_T, high_prob_threshold)
    if name in ACTUATORS:
        return actuator.weights(view)
    try:
        weights_T = actuator.weights(view)
    except Exception as error:
        raise ValueError(f"control.actuator={name}: {raised(error)}") from error
    if not isinstance(weights_T, Tensor) or weights_T.shape != log_prob_T.shape:
        shape = tuple(weights_T.shape) if isinstance(weights_T, Tensor) else type(weights_T).__name__
        raise ValueError(f"control.actuator={name}: returned {shape}; a tensor of {tuple(log_prob_T.shape)} is needed")
    if weights_T.numel() and not bool((weights_T.abs() <= 1).all()):
        raise ValueError(f"control.actuator={name}: returned {float(weights_T.abs().max()):g}; weights lie within -1 and 1")
    return weights_T.to(log_prob_T.dtype)


def _high_prob(view: TokenView) -> Tensor:
    return (view.log_prob_T > math.log(view.high_prob_threshold)).to(view.log_prob_T.dtype)


def _surprisal(view: TokenView) -> Tensor:
    return (view.log_prob_T + view.entropy_T > 0).to(view.log_prob_T.dtype)


def _signed(view: TokenView) -> Tensor:
    return torch.sign(view.log_prob_T + view.entropy_T)


def _exact(view: TokenView) -> Tensor:
    """sign(Phi), 0 within ROUNDINGS of its terms: the sign of noise would differ from layout to layout."""
    if view.mean_lowering_T is None:
        raise ValueError("control.actuator='exact' needs mean_lowering: token_statistics(..., mean_lowering=True)")
    lowers_T, probability_T = entropy_lowering(view.log_prob_T, view.entropy_T, view.mean_lowering_T), view.log_prob_T.exp()
    size_T = probability_T * view.entropy_T + torch.special.entr(probability_T) + view.mean_lowering_T.abs()
    return torch.where(lowers_T.abs() > ROUNDINGS * torch.finfo(lowers_T.dtype).eps * size_T, torch.sign(lowers_T), 0.0)


HIGH_PROB, SURPRISAL, SIGNED = Actuator(_high_prob), Actuator(_surprisal), Actuator(_signed)
EXACT = Actuator(_exact, needs_mean_lowering=True)


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
