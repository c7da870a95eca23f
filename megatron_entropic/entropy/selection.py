"""The K largest logits of each row over all tensor ranks, exactly, by radix select on order-preserving integer keys.

A floating-point number's bits, read as an integer with the magnitude bits of negative numbers flipped, sort like the
number. The K-th largest key is found one byte at a time: histogram the byte among the keys that share the bytes found so
far, add the histograms over the ranks, walk down to the byte that holds the K-th. Two rounds for 16-bit logits, four for
float32; each moves 256 counts a row, however large the vocabulary or K is.

Shapes: T rows inside the mask, B rows of a block, V this rank's real columns, D = 256 values of a byte, R tensor ranks.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_entropic.entropy.device_path import runs_kernels
from megatron_entropic.entropy.shard import ShardRows, VocabShard

DIGITS = 256
_KEY_DTYPES = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Threshold(NamedTuple):
    """Which of this rank's columns are among a row's K largest: above `key_T`, or equal to it and left of `tie_end_T`.

    Attributes:
        key_T: integer key of the K-th largest logit, in the key dtype of the logits; equal on all ranks.
        tie_end_T: int32 column of this rank; columns before it whose key equals `key_T` are kept.
    """

    key_T: Tensor
    tie_end_T: Tensor

    def at(self, block: slice) -> "Threshold":
        return Threshold(self.key_T[block], self.tie_end_T[block])

    def keep(self, raw_BV: Tensor) -> Tensor:
        """[B, V] bool membership; `self` is already cut to the block."""
        key_BV = order_keys(raw_BV)
        column_V = torch.arange(raw_BV.shape[1], device=raw_BV.device, dtype=torch.int32)
        tie_BV = (key_BV == self.key_T[:, None]) & (column_V < self.tie_end_T[:, None])
        return tie_BV.logical_or_(key_BV > self.key_T[:, None])


def order_keys(raw: Tensor) -> Tensor:
    """Signed integers of the logits' width that compare as the logits do; -0.0 and 0.0 get the same key."""
    bits = raw.view(_KEY_DTYPES[raw.element_size()])
    sign = bits >> (8 * raw.element_size() - 1)  # 0 or -1
    key = bits ^ (sign & torch.iinfo(bits.dtype).max)
    return key + (key == -1)  # only -0.0 has key -1, just below the 0 of 0.0


def select_largest(rows: ShardRows, count: int, shard: VocabShard) -> Threshold:
    """The threshold that keeps exactly `count` columns of every row over all ranks; among equals the lowest token ids.

    Args:
        rows: this rank's logits; at least one row.
        count: K, 1 <= K <= vocab_size.

    Collectives: one all-reduce [T, 256] int32 per byte of the logits' dtype, one all-gather [T] int32 of tie counts.
    NaN takes some place in the order and disturbs nothing but its own row.
    """
    if runs_kernels(rows.logits):
        from megatron_entropic.entropy import kernel_selection  # imports Triton

        return kernel_selection.select_largest(rows, count, shard)
    element_size = rows.logits.element_size()
    key_T = torch.zeros(len(rows), dtype=_KEY_DTYPES[element_size], device=rows.logits.device)
    wanted_T = torch.full((len(rows),), count, dtype=torch.int32, device=rows.logits.device)
    for byte in reversed(range(element_size)):
        local_TD = _histogram(rows, key_T, byte)
        counts_TD = shard.all_reduce(local_TD.clone() if shard.ranks > 1 else local_TD, dist.ReduceOp.SUM)
        digit_T, above_T = _walk_down(counts_TD, wanted_T)
        wanted_T = wanted_T - above_T
        key_T = _append_digit(key_T, digit_T, first=byte == element_size - 1)
    ties_T = local_TD.gather(1, digit_T[:, None]).squeeze(1)
    ties_RT = shard.all_gather(ties_T[None])
    quota_T = wanted_T - ties_RT[: shard.rank].sum(0, dtype=torch.int32)
    return Threshold(key_T, _tie_end(rows, key_T, quota_T))


def _histogram(rows: ShardRows, prefix_T: Tensor, byte: int) -> Tensor:
    """[T, D] int32 counts of byte number `byte` of the keys whose higher bytes equal `prefix_T`."""
    shift = 8 * byte
    first = byte == rows.logits.element_size() - 1
    counts_TD = torch.zeros(len(rows), DIGITS, dtype=torch.int32, device=rows.logits.device)
    for block, raw_BV in rows.blocks():
        key_BV = order_keys(raw_BV)
        digit_BV = (key_BV >> shift) & (DIGITS - 1)
        if first:  # the sign bit sorts the other way round from the rest of its byte
            digit_BV ^= DIGITS // 2
            match_BV = torch.ones_like(digit_BV, dtype=torch.int32)
        else:
            match_BV = (key_BV >> (shift + 8) == prefix_T[block, None]).int()
        counts_TD[block].scatter_add_(1, digit_BV.long(), match_BV)
    return counts_TD


def _walk_down(counts_TD: Tensor, wanted_T: Tensor) -> tuple[Tensor, Tensor]:
    """The digit that holds the `wanted_T`-th largest key (int64), and how many keys have a larger digit (int32)."""
    from_top_TD = counts_TD.flip(1).cumsum(1, dtype=torch.int32)
    place_T = (from_top_TD < wanted_T[:, None]).sum(1)
    digit_T = DIGITS - 1 - place_T
    here_T = counts_TD.gather(1, digit_T[:, None]).squeeze(1)
    return digit_T, from_top_TD.gather(1, place_T[:, None]).squeeze(1) - here_T


def _append_digit(prefix_T: Tensor, digit_T: Tensor, *, first: bool) -> Tensor:
    if first:
        return (digit_T - DIGITS // 2).to(prefix_T.dtype)
    return (prefix_T << 8) | digit_T.to(prefix_T.dtype)


def _tie_end(rows: ShardRows, key_T: Tensor, quota_T: Tensor) -> Tensor:
    """int32 column just behind the `quota_T`-th tie of each row; 0 where the quota is 0 or less."""
    end_T = torch.empty_like(quota_T)
    for block, raw_BV in rows.blocks():
        seen_BV = (order_keys(raw_BV) == key_T[block, None]).cumsum(1, dtype=torch.int32)
        end_T[block] = (seen_BV < quota_T[block, None]).sum(1, dtype=torch.int32) + 1
    return torch.where(quota_T > 0, end_T, 0)
