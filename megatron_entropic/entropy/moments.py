"""Moments of the rows: the sums that every statistic is made of, how pieces and ranks combine, and the statistics themselves.

row_math.py has the formulas. Shapes: T unmasked tokens, K = 3 sums (5 with a clamp).
"""

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_entropic.entropy.records import LOWEST, Moments, TokenScalars
from megatron_entropic.entropy.shard import VocabShard


def combine_moments(local: Moments, max_T: Tensor, column_T: Tensor, temperature: float, shard: VocabShard) -> Moments:
    """Moments over all ranks relative to the global maximum `max_T`; one all-reduce [K, T], [K + 2, T] with the squares."""
    relative = _relative_to(local, max_T, column_T, temperature)
    if relative.squares_2T is None:
        shard.all_reduce(relative.sums_KT, dist.ReduceOp.SUM)
        return relative
    both = shard.all_reduce(torch.cat([relative.sums_KT, relative.squares_2T]), dist.ReduceOp.SUM)
    return Moments(max_T, both[:-2], both[-2:])


def merge_moments(parts: list[Moments], columns: list[Tensor], temperature: float) -> Moments:
    """Moments of several pieces of one rank's columns as if they had been one; `columns`: the target's column in each, or -1."""
    max_T = torch.stack([part.max_T for part in parts]).amax(0)
    relative = [_relative_to(part, max_T, column_T, temperature) for part, column_T in zip(parts, columns, strict=True)]
    squares = [part.squares_2T for part in relative if part.squares_2T is not None]
    sums_KT = torch.stack([part.sums_KT for part in relative]).sum(0)
    return Moments(max_T, sums_KT, torch.stack(squares).sum(0) if squares else None)


def _relative_to(local: Moments, max_T: Tensor, column_T: Tensor, temperature: float) -> Moments:
    """`local` as its sums are relative to `max_T` instead of the maximum they come with."""
    shift_T = torch.where(local.max_T == -torch.inf, 0, (local.max_T - max_T) / temperature)
    target_T = torch.where(column_T >= 0, local.sums_KT[2] + shift_T, 0)
    shift_T = shift_T.clamp(min=LOWEST)
    scale_T = shift_T.exp()

    def rescaled(scale_T: Tensor, exp_T: Tensor, dexp_T: Tensor) -> list[Tensor]:
        return [scale_T * exp_T, scale_T * (dexp_T + shift_T * exp_T)]

    sums = [*rescaled(scale_T, local.sums_KT[0], local.sums_KT[1]), target_T]
    if local.sums_KT.shape[0] == 5:
        sums += rescaled(scale_T, local.sums_KT[3], local.sums_KT[4])
    squares = None if local.squares_2T is None else torch.stack(rescaled(scale_T.square(), *local.squares_2T))
    return Moments(max_T, torch.stack(sums), squares)


def finish(moments: Moments) -> tuple[Tensor, TokenScalars]:
    """(log_prob_T, the other scalars) from the global moments."""
    max_T, sums_KT = moments.max_T, moments.sums_KT
    log_sum_T = sums_KT[0].log()
    entropy_T = log_sum_T - sums_KT[1] / sums_KT[0]
    log_prob_T = sums_KT[2] - log_sum_T
    if sums_KT.shape[0] == 3:
        return log_prob_T, TokenScalars(max_T, log_sum_T, entropy_T, None, None)
    kept_log_sum_T = sums_KT[3].log()
    kept_entropy_T = kept_log_sum_T - sums_KT[4] / sums_KT[3]
    return log_prob_T, TokenScalars(max_T, log_sum_T, entropy_T, kept_log_sum_T, kept_entropy_T)


def mean_lowering(moments: Moments) -> Tensor | None:
    """sum_v p_v^2 (log p_v + H), [T], from the global moments; None without the squares. Log S, whatever it is, cancels."""
    if moments.squares_2T is None:
        return None
    exp_T, dexp_T = moments.sums_KT[:2]
    square_T, dsquare_T = moments.squares_2T
    lowering_T: Tensor = (dsquare_T - dexp_T / exp_T * square_T) / exp_T.square()
    return lowering_T
