"""Clip-Cov and KL-Cov (arXiv 2505.22617): nothing is steered; the tokens with the largest covariance are treated otherwise.

Shapes: N response tokens of the mini-batch, T packed positions of a micro-batch.
"""

from typing import TYPE_CHECKING

from megatron_entropic.config import ControlConfig
from megatron_entropic.control.coefficients import Coefficients
from megatron_entropic.control.constant import Static
from megatron_entropic.control.kinds import ControlKind, TokenLoss, TokenPool, TokenSelection

if TYPE_CHECKING:
    from torch import Tensor


def _choose_to_leave_out(control: ControlConfig, pool: TokenPool) -> "Tensor":
    from megatron_entropic.algorithms import clip_cov_selection  # brings torch

    return clip_cov_selection(
        pool.log_prob_N,
        pool.advantage_N,
        share=control.cov_share,
        low=control.cov_low,
        high=control.cov_high,
        generator=pool.generator,
        clipped_N=pool.clipped_N,
    )


def _leave_out(control: ControlConfig, loss: TokenLoss) -> "tuple[Tensor, None]":
    import torch

    return torch.where(loss.selected_T, 0.0, loss.policy_T), None


def _choose_to_penalize(control: ControlConfig, pool: TokenPool) -> "Tensor":
    from megatron_entropic.algorithms import kl_cov_selection

    return kl_cov_selection(pool.log_prob_N, pool.advantage_N, share=control.cov_share)


def _penalize(control: ControlConfig, loss: TokenLoss) -> "tuple[Tensor, Tensor]":
    from megatron_entropic.algorithms import kl_cov_penalty

    return loss.policy_T, control.cov_kl_coefficient * kl_cov_penalty(loss.log_ratio_T, loss.selected_T, loss.weight_T)


CLIP_COV = ControlKind(
    meaning="Clip-Cov (arXiv 2505.22617): some tokens of large covariance are left out of each update",
    make=lambda control, momentum: Static(control, Coefficients()),
    reads=("cov_share", "cov_low", "cov_high"),
    selection=TokenSelection(_choose_to_leave_out, _leave_out, needs_every_token=True),
)
KL_COV = ControlKind(
    meaning="KL-Cov (arXiv 2505.22617): the tokens of largest covariance get a KL penalty, in place of the clip",
    make=lambda control, momentum: Static(control, Coefficients()),
    reads=("cov_share", "cov_kl_coefficient"),
    selection=TokenSelection(_choose_to_penalize, _penalize, clips_ratio=False, needs_old_policy=True),
)
