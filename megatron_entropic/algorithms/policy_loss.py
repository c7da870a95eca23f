"""The terms of the loss, per token. Sums and global denominators are the caller's (policy/engine.py).

Shapes: T response tokens. Every function returns a [tokens] tensor to be summed over the mini-batch and divided by a
*global* count of the mini-batch, so that the gradient does not depend on how tokens are spread over micro-batches or ranks.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from megatron_entropic.config.schema import POLICY_LOSS_ENTRY_POINTS, POLICY_LOSSES
from megatron_entropic.system.named_functions import named_function, raised

PolicyLoss = Callable[..., Tensor]
"""As clipped_policy_loss: (ratio_T, advantage_T, *, clip_low, clip_high, weight_T) to [tokens]."""


@cache
def make_policy_loss(name: str) -> PolicyLoss:
    """The policy loss `name` (`algorithm.policy_loss`): of POLICY_LOSSES, of an installed package, or the user's function.

    Raises ValueError when it cannot be imported. A user's function raises ValueError for whatever goes wrong in it, and where it
    gives anything but one number a token.
    """
    loss: PolicyLoss = named_function("algorithm.policy_loss", name, POLICY_LOSSES, POLICY_LOSS_ENTRY_POINTS)
    if name in POLICY_LOSSES:
        return loss

    def checked(ratio_T: Tensor, advantage_T: Tensor, **settings: object) -> Tensor:
        try:
            loss_T = loss(ratio_T, advantage_T, **settings)
        except (Exception, SystemExit) as error:
            raise ValueError(f"algorithm.policy_loss={name}: {raised(error)}") from error
        if not isinstance(loss_T, Tensor) or loss_T.shape != ratio_T.shape:
            got = list(loss_T.shape) if isinstance(loss_T, Tensor) else type(loss_T).__name__
            raise ValueError(f"algorithm.policy_loss={name}: gave {got}, not a loss for each of {list(ratio_T.shape)} tokens")
        return loss_T

    return checked


def clipped_policy_loss(
    ratio_T: Tensor, advantage_T: Tensor, *, clip_low: float, clip_high: float, weight_T: Tensor | None = None
) -> Tensor:
    """PPO's clipped objective with asymmetric clip (clip-higher: arXiv 2503.14476).

        l_t = - w_t min(r_t A_t, clip(r_t, 1 - clip_low, 1 + clip_high) A_t)

    Args:
        ratio_T: r_t = exp(log pi - log pi_old), carries the gradient.
        advantage_T: A_t, no gradient.
        weight_T: importance weight for samples of another policy (see truncated_importance_weight); None is 1.
    Returns:
        [tokens] float32.
    """
    clipped_T = ratio_T.clamp(1.0 - clip_low, 1.0 + clip_high)
    loss_T = -torch.minimum(ratio_T * advantage_T, clipped_T * advantage_T)
    return loss_T if weight_T is None else loss_T * weight_T


@torch.no_grad()
def ratio_clipped(ratio_T: Tensor, advantage_T: Tensor, *, clip_low: float, clip_high: float) -> Tensor:
    """Tokens where clipped_policy_loss takes the clipped branch, whose gradient is 0: [tokens] bool."""
    return ((ratio_T > 1 + clip_high) & (advantage_T > 0)) | ((ratio_T < 1 - clip_low) & (advantage_T < 0))


def kl_cov_penalty(log_ratio_T: Tensor, selected_T: Tensor, weight_T: Tensor | None = None) -> Tensor:
    """KL-Cov's penalty (arXiv 2505.22617), to be multiplied by its coefficient.

        l_t = w_t |log r_t|   on the selected tokens, 0 elsewhere

    |log pi - log pi_old| stands for the KL divergence, as in the authors' code. Its gradient is 0 where r_t is exactly 1.

    Args:
        log_ratio_T: log r_t = log pi - log pi_old, carries the gradient.
        selected_T: bool; see kl_cov_selection.
        weight_T: as in clipped_policy_loss.
    Returns:
        [tokens] float32.
    """
    loss_T = torch.where(selected_T, log_ratio_T, 0.0).abs()
    return loss_T if weight_T is None else loss_T * weight_T


def entropic_adjustment(ratio_T: Tensor, advantage_T: Tensor, actuator_T: Tensor, weight_T: Tensor | None = None) -> Tensor:
    """EntroPIC's L_adjust (arXiv 2511.15248), to be multiplied by alpha / D.

        l_t = - m_t w_t r_t |A_t|

    Added to the policy loss it weights a masked positive sample 1 + alpha and a masked negative sample 1 - alpha. The
    released code has no w_t; here the same importance weight as in the policy term applies.
    """
    loss_T = -actuator_T * ratio_T * advantage_T.abs()
    return loss_T if weight_T is None else loss_T * weight_T


def entropy_bonus(entropy_T: Tensor) -> Tensor:
    """AEnt's bonus (arXiv 2509.03493), to be multiplied by c / N:  l_t = - Hc_t  with the (clamped) entropy in nats."""
    return -entropy_T


def truncated_importance_weight(log_prob_old_T: Tensor, log_prob_sampler_T: Tensor, cap: float) -> Tensor:
    """w_t = min(exp(log pi_old - log pi_sampler), cap): corrects for a sampler that is not exactly the old policy; no gradient."""
    return (log_prob_old_T - log_prob_sampler_T).exp().clamp(max=cap).detach()
