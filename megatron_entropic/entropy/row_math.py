"""The formulas, forward and backward, in plain torch; on a GPU, kernels.py and kernel_gradient.py do the same.

With d = (x - max x) / temperature, S = sum exp(d), M = sum d exp(d):   log p_i = d_i - log S,   H = log S - M / S.
M <= 0 <= log S, so nothing cancels, whatever the offset of the logits: moments are of d, never of x. The subtraction comes
before the division, so float32 logits of 1e4 lose nothing to it.

Shapes: T rows inside the mask, B rows of a block, V this rank's real columns, K = 3 sums (5 with a clamp).
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_entropic.entropy.device_path import runs_kernels
from megatron_entropic.entropy.selection import Threshold
from megatron_entropic.entropy.shard import ShardRows, VocabShard, statistics_dtype

LOWEST = -1e4
"""exp of this is 0 in float32 and float64: raising d to it changes no sum, and keeps 0 * -inf from making a NaN."""


class Moments(NamedTuple):
    """One rank's columns of each row, relative to that rank's own maximum.

    Attributes:
        max_T: largest logit as given (not divided by the temperature); -inf when the rank holds no finite logit.
        sums_KT: sum exp(d), sum d exp(d), the target's d (0 when another rank holds it); then the first two over the
            K largest logits when there is a clamp.
    """

    max_T: Tensor
    sums_KT: Tensor


class TokenScalars(NamedTuple):
    """Per-token results, equal on all tensor ranks, and all that the gradient needs beside the logits.

    Attributes:
        max_T: global maximum of the logits as given.
        log_sum_T, entropy_T: log S about that maximum; H in nats.
        kept_log_sum_T, kept_entropy_T: the same over the K largest logits; None without a selection.
    """

    max_T: Tensor
    log_sum_T: Tensor
    entropy_T: Tensor
    kept_log_sum_T: Tensor | None
    kept_entropy_T: Tensor | None

    def at(self, block: slice) -> "TokenScalars":
        return TokenScalars(*(None if x_T is None else x_T[block] for x_T in self))  # type: ignore[arg-type]


class UpstreamGradients(NamedTuple):
    """Gradients of the loss with respect to each result, [T] in the statistics' dtype; None where it is unused."""

    log_prob_T: Tensor | None
    entropy_T: Tensor | None
    kept_entropy_T: Tensor | None

    def at(self, block: slice) -> "UpstreamGradients":
        return UpstreamGradients(*(None if x_T is None else x_T[block] for x_T in self))


def local_moments(rows: ShardRows, column_T: Tensor, temperature: float, threshold: Threshold | None) -> Moments:
    """Moments of this rank's columns; `column_T` is the target's column here or -1. No collective."""
    if runs_kernels(rows.logits):
        from megatron_entropic.entropy import kernels  # imports Triton

        return kernels.local_moments(rows, column_T, temperature, threshold)
    dtype, device = statistics_dtype(rows.logits.dtype), rows.logits.device
    max_T = torch.full((len(rows),), -torch.inf, dtype=dtype, device=device)
    sums_KT = torch.zeros(3 if threshold is None else 5, len(rows), dtype=dtype, device=device)
    if rows.columns == 0:
        return Moments(max_T, sums_KT)
    for block, raw_BV in rows.blocks():
        max_T[block] = raw_BV.amax(1)
        origin_B1 = torch.where(max_T[block] == -torch.inf, 0, max_T[block])[:, None]
        target_B1 = (raw_BV.gather(1, column_T[block, None].clamp(min=0)).to(dtype) - origin_B1) / temperature
        sums_KT[2, block] = torch.where(column_T[block] >= 0, target_B1.squeeze(1), 0)
        d_BV = (raw_BV.to(dtype) - origin_B1).div_(temperature).clamp_(min=LOWEST)
        exp_BV = d_BV.exp()
        sums_KT[0, block] = exp_BV.sum(1)
        if threshold is not None:
            exp_kept_BV = exp_BV * threshold.at(block).keep(raw_BV)
            sums_KT[3, block] = exp_kept_BV.sum(1)
            sums_KT[4, block] = exp_kept_BV.mul_(d_BV).sum(1)
        sums_KT[1, block] = exp_BV.mul_(d_BV).sum(1)
    return Moments(max_T, sums_KT)


def combine_moments(local: Moments, max_T: Tensor, column_T: Tensor, temperature: float, shard: VocabShard) -> Tensor:
    """Sums over all ranks relative to the global maximum `max_T`; one all-reduce [K, T]. Returns sums_KT."""
    shift_T = torch.where(local.max_T == -torch.inf, 0, (local.max_T - max_T) / temperature)
    target_T = torch.where(column_T >= 0, local.sums_KT[2] + shift_T, 0)
    shift_T = shift_T.clamp(min=LOWEST)
    scale_T = shift_T.exp()

    def rescaled(exp_T: Tensor, dexp_T: Tensor) -> list[Tensor]:
        return [scale_T * exp_T, scale_T * (dexp_T + shift_T * exp_T)]

    sums = [*rescaled(local.sums_KT[0], local.sums_KT[1]), target_T]
    if local.sums_KT.shape[0] == 5:
        sums += rescaled(local.sums_KT[3], local.sums_KT[4])
    return shard.all_reduce(torch.stack(sums), dist.ReduceOp.SUM)


def finish(max_T: Tensor, sums_KT: Tensor) -> tuple[Tensor, TokenScalars]:
    """(log_prob_T, the other scalars) from the global sums."""
    log_sum_T = sums_KT[0].log()
    entropy_T = log_sum_T - sums_KT[1] / sums_KT[0]
    log_prob_T = sums_KT[2] - log_sum_T
    if sums_KT.shape[0] == 3:
        return log_prob_T, TokenScalars(max_T, log_sum_T, entropy_T, None, None)
    kept_log_sum_T = sums_KT[3].log()
    kept_entropy_T = kept_log_sum_T - sums_KT[4] / sums_KT[3]
    return log_prob_T, TokenScalars(max_T, log_sum_T, entropy_T, kept_log_sum_T, kept_entropy_T)


def write_logits_gradient(
    rows: ShardRows,
    column_T: Tensor,
    temperature: float,
    scalars: TokenScalars,
    threshold: Threshold | None,
    upstream: UpstreamGradients,
    out_NV: Tensor,
) -> None:
    """Writes d loss / d logits of the rows inside the mask into `out_NV`, in its dtype; one pass, no collective.

    d log p_y / dz_i = 1[i = y] - p_i,    dH / dz_i = -p_i (log p_i + H),    dHc / dz_i = -q_i (log q_i + Hc) on the K
    largest, else 0;    dz / dx = 1 / temperature.
    """
    if runs_kernels(rows.logits):
        from megatron_entropic.entropy import kernel_gradient  # imports Triton

        kernel_gradient.write_logits_gradient(rows, column_T, temperature, scalars, threshold, upstream, out_NV)
        return
    # nothing is divided by the temperature but V-sized d: the rest of it goes into the per-token factors
    scaled = UpstreamGradients(*(None if g_T is None else g_T / temperature for g_T in upstream))
    for block, raw_BV in rows.blocks():
        grad_BV = _block_gradient(
            raw_BV, column_T[block], temperature, scalars.at(block), threshold and threshold.at(block), scaled.at(block)
        )
        rows.write(out_NV, block, grad_BV)


def _block_gradient(
    raw_BV: Tensor,
    column_B: Tensor,
    temperature: float,
    scalars: TokenScalars,
    threshold: Threshold | None,
    upstream: UpstreamGradients,
) -> Tensor:
    d_BV = (raw_BV.to(scalars.max_T.dtype) - scalars.max_T[:, None]).div_(temperature)
    grad_BV = None
    if upstream.log_prob_T is not None or upstream.entropy_T is not None:
        grad_BV = _softmax_gradient(d_BV - scalars.log_sum_T[:, None], scalars.entropy_T, upstream.entropy_T, upstream.log_prob_T)
        if upstream.log_prob_T is not None and raw_BV.shape[1] > 0:
            at_target_B = torch.where(column_B >= 0, upstream.log_prob_T, 0)
            grad_BV.scatter_add_(1, column_B.clamp(min=0)[:, None], at_target_B[:, None])
    if upstream.kept_entropy_T is not None:
        assert threshold is not None
        assert scalars.kept_log_sum_T is not None
        assert scalars.kept_entropy_T is not None
        log_q_BV = d_BV.sub_(scalars.kept_log_sum_T[:, None])
        kept_grad_BV = _softmax_gradient(log_q_BV, scalars.kept_entropy_T, upstream.kept_entropy_T, None)
        kept_grad_BV.mul_(threshold.keep(raw_BV))
        grad_BV = kept_grad_BV if grad_BV is None else grad_BV.add_(kept_grad_BV)
    return torch.zeros_like(d_BV) if grad_BV is None else grad_BV


def _softmax_gradient(log_p_BV: Tensor, entropy_B: Tensor, for_entropy_B: Tensor | None, for_log_prob_B: Tensor | None) -> Tensor:
    """-p (log p + H) g_entropy - p g_log_prob; overwrites `log_p_BV`."""
    log_p_BV.clamp_(min=LOWEST)
    if for_entropy_B is None:
        assert for_log_prob_B is not None
        return log_p_BV.exp_().mul_(-for_log_prob_B[:, None])
    grad_BV = (log_p_BV + entropy_B[:, None]).mul_(-for_entropy_B[:, None])
    if for_log_prob_B is not None:
        grad_BV.sub_(for_log_prob_B[:, None])
    return grad_BV.mul_(log_p_BV.exp_())
