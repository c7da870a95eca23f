"""The formulas, forward and backward, in plain torch; on a GPU, triton/moments.py and triton/gradient.py do the same.

With d = (x - max x) / temperature, S = sum exp(d), M = sum d exp(d):   log p_i = d_i - log S,   H = log S - M / S.
M <= 0 <= log S, so nothing cancels, whatever the offset of the logits: moments are of d, never of x. The subtraction comes
before the division, so float32 logits of 1e4 lose nothing to it. On request also Q = sum exp(2d), N = sum d exp(2d):
    E_{v~p}[p_v (log p_v + H)] = sum p_v^2 (log p_v + H) = (N - Q M / S) / S^2.

On a CPU the distances of wide rows are in bits, u = d / log 2, while they are exponentiated: exp(d) = 2^u, which torch computes four to
nine times as fast there. Narrow rows, whose time goes into calls, keep to exp and to its last bit.

Shapes: T unmasked tokens, B rows of a block, V this rank's real columns, K = 3 sums (5 with a clamp).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from megatron_entropic.entropy.device_path import runs_kernels
from megatron_entropic.entropy.records import LOWEST, Moments, Threshold, TokenScalars, UpstreamGradients, keys_below, numbers_of_keys
from megatron_entropic.entropy.shard import ShardRows, statistics_dtype
from megatron_entropic.entropy.thread_pool import for_each_block

WIDE = 512
"""Columns from which exp2 pays."""


class _Exponential(NamedTuple):
    """exp of distances that are given in a `unit` of nats: exp(u unit)."""

    unit: float
    of: Callable[..., Tensor]

    @classmethod
    def for_rows(cls, rows: ShardRows) -> "_Exponential":
        return cls(math.log(2), torch.exp2) if rows.columns >= WIDE else cls(1.0, torch.exp)


def local_moments(
    rows: ShardRows,
    column_T: Tensor,
    temperature: float,
    threshold: Threshold | None,
    *,
    entropy: bool = True,
    squares: bool = False,
) -> Moments:
    """Moments of this rank's columns; `column_T` is the target's column here or -1. No collective.

    Memory is read once: a block's rows stay in cache for all that is done with them. Without `entropy` sum d exp(d) is left
    out, and stays 0; `squares`, which need it, are left out unless asked for.
    """
    if runs_kernels(rows.logits):
        from megatron_entropic.entropy.triton import moments  # imports Triton

        return moments.local_moments(rows, column_T, temperature, threshold, entropy=entropy, squares=squares)
    dtype, device = statistics_dtype(rows.logits.dtype), rows.logits.device
    max_T = torch.full((len(rows),), -torch.inf, dtype=dtype, device=device)
    sums_KT = torch.zeros(3 if threshold is None else 5, len(rows), dtype=dtype, device=device)
    squares_2T = torch.zeros_like(sums_KT[:2]) if squares else None
    if rows.columns == 0 or len(rows) == 0:
        return Moments(max_T, sums_KT, squares_2T)
    cut, exponential = None if threshold is None else Cut.of(threshold, rows), _Exponential.for_rows(rows)

    def measure(block: slice, raw_BV: Tensor, buffers_BV: list[Tensor]) -> None:
        u_BV, exp_BV, *spare = buffers_BV
        x_BV = raw_BV if raw_BV.dtype == dtype else u_BV.copy_(raw_BV)
        max_T[block] = x_BV.amax(1)
        origin_B1 = torch.where(max_T[block] == -torch.inf, 0, max_T[block])[:, None]
        target_B1 = (x_BV.gather(1, column_T[block, None].clamp(min=0)) - origin_B1) / temperature
        sums_KT[2, block] = torch.where(column_T[block] >= 0, target_B1.squeeze(1), 0)
        kept_BV = None if cut is None else cut.at(block).write_membership(x_BV, *spare)
        _scaled_distance(x_BV, origin_B1, temperature * exponential.unit, u_BV)
        sums_KT[0, block] = exponential.of(u_BV, out=exp_BV).sum(1)
        if kept_BV is not None:
            sums_KT[3, block] = kept_BV.mul_(exp_BV).sum(1)
            sums_KT[4, block] = kept_BV.mul_(u_BV).sum(1) * exponential.unit
        if entropy:
            sums_KT[1, block] = u_BV.mul_(exp_BV).sum(1) * exponential.unit
        if squares_2T is not None:
            squares_2T[1, block] = u_BV.mul_(exp_BV).sum(1) * exponential.unit
            squares_2T[0, block] = exp_BV.mul_(exp_BV).sum(1)

    for_each_block(rows, 2 if cut is None else 4, measure)
    return Moments(max_T, sums_KT, squares_2T)


def _scaled_distance(x_BV: Tensor, origin_B1: Tensor, scale: float, out_BV: Tensor) -> None:
    """(x - origin) / scale into `out_BV`, which may be x_BV."""
    torch.sub(x_BV, origin_B1, out=out_BV)
    if scale != 1:
        out_BV.div_(scale)
    out_BV.clamp_(min=LOWEST)


class Cut(NamedTuple):
    """A threshold as numbers, for comparisons that write 0.0 and 1.0: several times faster on a CPU than booleans.

    Attributes:
        above_T1: columns with a larger number are kept.
        tie_T1, end_T1: so are those equal to the first left of the second; None when no row divides its ties.
        column_V: 0, 1, 2 ...
    """

    above_T1: Tensor
    tie_T1: Tensor | None
    end_T1: Tensor | None
    column_V: Tensor | None

    @classmethod
    def of(cls, threshold: Threshold, rows: ShardRows) -> "Cut":
        dtype, raw_dtype = statistics_dtype(rows.logits.dtype), rows.logits.dtype
        all_T = threshold.tie_end_T >= rows.columns
        above_T = numbers_of_keys(torch.where(all_T, keys_below(threshold.key_T), threshold.key_T), raw_dtype).to(dtype)
        # nothing is below -inf, and whether the -inf of a row are kept makes no difference
        above_T1 = above_T.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)[:, None]
        if not bool(((threshold.tie_end_T > 0) & ~all_T).any()):
            return cls(above_T1, None, None, None)
        # where all ties are kept they are above already, and must not count twice
        end_T1 = torch.where(all_T, 0, threshold.tie_end_T).to(dtype)[:, None]
        column_V = torch.arange(rows.columns, device=above_T.device, dtype=dtype)
        return cls(above_T1, numbers_of_keys(threshold.key_T, raw_dtype).to(dtype)[:, None], end_T1, column_V)

    def at(self, block: slice) -> "Cut":
        if self.tie_T1 is None or self.end_T1 is None:
            return Cut(self.above_T1[block], None, None, None)
        return Cut(self.above_T1[block], self.tie_T1[block], self.end_T1[block], self.column_V)

    def write_membership(self, x_BV: Tensor, out_BV: Tensor, spare_BV: Tensor) -> Tensor:
        """1.0 for the columns that are kept, else 0.0, into `out_BV`."""
        torch.gt(x_BV, self.above_T1, out=out_BV)
        if self.tie_T1 is not None and self.end_T1 is not None and self.column_V is not None:
            ends_B = self.end_T1.squeeze(1).long().tolist() if len(x_BV) == 1 else [x_BV.shape[1]]
            left = slice(0, ends_B[0])  # of a single row, look no further than its last kept tie
            tie_BV = torch.eq(x_BV[:, left], self.tie_T1, out=spare_BV[:, left])
            if len(x_BV) > 1:
                tie_BV.mul_(self.column_V < self.end_T1)
            out_BV[:, left].add_(tie_BV)
        return out_BV


def write_logits_gradient(
    rows: ShardRows,
    column_T: Tensor,
    temperature: float,
    scalars: TokenScalars,
    threshold: Threshold | None,
    upstream: UpstreamGradients,
    out_NV: Tensor,
) -> None:
    """Writes d loss / d logits of the unmasked tokens into `out_NV`, in its dtype; one pass, no collective.

    d log p_y / dz_i = 1[i = y] - p_i,    dH / dz_i = -p_i (log p_i + H),    dHc / dz_i = -q_i (log q_i + Hc) on the K
    largest, else 0;    dz / dx = 1 / temperature.
    """
    if runs_kernels(rows.logits):
        from megatron_entropic.entropy.triton import gradient  # imports Triton

        gradient.write_logits_gradient(rows, column_T, temperature, scalars, threshold, upstream, out_NV)
        return
    if rows.columns == 0 or len(rows) == 0:
        return
    exponential = _Exponential.for_rows(rows)
    factors = _factors(scalars, upstream, temperature, exponential.unit)
    cut = None if threshold is None or factors.kept_T1 is None else Cut.of(threshold, rows)
    dtype = statistics_dtype(rows.logits.dtype)

    def differentiate(block: slice, raw_BV: Tensor, buffers_BV: list[Tensor]) -> None:
        u_BV, exp_BV, *spare = buffers_BV
        x_BV = raw_BV if raw_BV.dtype == dtype else u_BV.copy_(raw_BV)
        kept_BV = None if cut is None else cut.at(block).write_membership(x_BV, *spare)
        _scaled_distance(x_BV, scalars.max_T[block, None], temperature * exponential.unit, u_BV)
        exponential.of(u_BV, out=exp_BV)
        slope_BV = _write_slope(factors.at(block), u_BV, kept_BV, spare)
        grad_BV = torch.mul(exp_BV, slope_BV, out=rows.destination(out_NV, block, u_BV))
        if upstream.log_prob_T is not None:
            at_target_B = torch.where(column_T[block] >= 0, upstream.log_prob_T[block] / temperature, 0)
            grad_BV.scatter_add_(1, column_T[block, None].clamp(min=0), at_target_B[:, None])
        rows.write(out_NV, block, grad_BV)

    for_each_block(rows, 2 if cut is None else 4, differentiate)


class _Factors(NamedTuple):
    """The gradient is exp(d) times base + slope u, and kept_base + kept_slope u more for the kept columns; [T, 1] each."""

    base_T1: Tensor | None
    slope_T1: Tensor | None
    kept_base_T1: Tensor | None
    kept_T1: Tensor | None

    def at(self, block: slice) -> "_Factors":
        return _Factors(*(None if x_T1 is None else x_T1[block] for x_T1 in self))


def _factors(scalars: TokenScalars, upstream: UpstreamGradients, temperature: float, unit: float) -> _Factors:
    """With log p = d - log S, p = exp(d) / S: -p (log p + H) g_H - p g_log_prob = exp(d) (slope d + base), for u = d / unit."""
    base_T, slope_T, kept_base_T, kept_T = None, None, None, None
    scale_T = -(-scalars.log_sum_T).exp() / temperature
    if upstream.log_prob_T is not None:
        base_T = scale_T * upstream.log_prob_T
    if upstream.entropy_T is not None:
        slope_T = scale_T * upstream.entropy_T
        from_entropy_T = slope_T * (scalars.entropy_T - scalars.log_sum_T)
        base_T = from_entropy_T if base_T is None else base_T + from_entropy_T
        slope_T = slope_T * unit
    if upstream.kept_entropy_T is not None:
        assert scalars.kept_log_sum_T is not None
        assert scalars.kept_entropy_T is not None
        kept_T = -(-scalars.kept_log_sum_T).exp() / temperature * upstream.kept_entropy_T
        kept_base_T = kept_T * (scalars.kept_entropy_T - scalars.kept_log_sum_T)
        kept_T = kept_T * unit
    return _Factors(*(None if x_T is None else x_T[:, None] for x_T in (base_T, slope_T, kept_base_T, kept_T)))


def _write_slope(factors: _Factors, u_BV: Tensor, kept_BV: Tensor | None, spare: list[Tensor]) -> Tensor:
    """What exp(d) is multiplied by: u overwritten, or a column [B, 1] where it does not depend on u."""
    base_B1, slope_B1, kept_base_B1, kept_B1 = factors
    if kept_BV is not None and kept_base_B1 is not None and kept_B1 is not None:
        kept_BV.mul_(torch.mul(u_BV, kept_B1, out=spare[1]).add_(kept_base_B1))
    if slope_B1 is not None and base_B1 is not None:
        u_BV.mul_(slope_B1).add_(base_B1)
        return u_BV if kept_BV is None else u_BV.add_(kept_BV)
    column_B1 = torch.zeros_like(u_BV[:, :1]) if base_B1 is None else base_B1
    return column_B1 if kept_BV is None else kept_BV.add_(column_B1)
