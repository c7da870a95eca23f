"""The K largest logits of each row over all tensor ranks, exactly, by radix select on order-preserving integer keys.

A floating-point number's bits, read as an integer with the magnitude bits of negative numbers flipped, sort like the
number. The K-th largest key is found one byte at a time: histogram the byte among the keys that share the bytes found so
far, add the histograms over the ranks, walk down to the byte that holds the K-th. Two rounds for 16-bit logits, four for
float32; each moves 256 counts a row, however large the vocabulary or K is. Whole rows in host memory need no rounds: there a
partial sort is several times faster, and finds the same threshold.

Shapes: T unmasked tokens, B rows of a block, V this rank's real columns, W tensor ranks.
"""

import numpy
import torch
import torch.distributed as dist
from torch import Tensor

from megatron_entropic.entropy.device_path import runs_kernels
from megatron_entropic.entropy.records import DIGITS, KEY_DTYPES, Threshold, order_keys
from megatron_entropic.entropy.shard import ShardRows, VocabShard, statistics_dtype
from megatron_entropic.entropy.thread_pool import for_each_block


def select_largest(rows: ShardRows, count: int, shard: VocabShard) -> Threshold:
    """The threshold that keeps exactly `count` columns of every row over all ranks; among equals the lowest token ids.

    Args:
        rows: this rank's logits; at least one row.
        count: K, 1 <= K <= vocab_size.

    Collectives: one all-reduce [T, 256] int32 per byte of the logits' dtype, one all-gather [T] int32 of tie counts; none for
    whole rows. NaN takes some position in the order and disturbs nothing but its own row.
    """
    if runs_kernels(rows.logits):
        from megatron_entropic.entropy.triton import selection  # imports Triton

        return selection.select_largest(rows, count, shard)
    if shard.ranks == 1 and rows.logits.is_cpu:
        return select_by_partition(rows, count)
    return select_by_digits(rows, count, shard)


def select_by_digits(rows: ShardRows, count: int, shard: VocabShard) -> Threshold:
    """`select_largest` for rows spread over any number of ranks, on any device."""
    element_size = rows.logits.element_size()
    key_T = torch.zeros(len(rows), dtype=KEY_DTYPES[element_size], device=rows.logits.device)
    wanted_T = torch.full((len(rows),), count, dtype=torch.int32, device=rows.logits.device)
    for byte in reversed(range(element_size)):
        local_T256 = _histogram(rows, key_T, byte)
        counts_T256 = shard.all_reduce(local_T256.clone() if shard.ranks > 1 else local_T256, dist.ReduceOp.SUM)
        digit_T, above_T = _walk_down(counts_T256, wanted_T)
        wanted_T = wanted_T - above_T
        key_T = _append_digit(key_T, digit_T, first=byte == element_size - 1)
    ties_T = local_T256.gather(1, digit_T[:, None]).squeeze(1)
    ties_WT = shard.all_gather(ties_T[None])
    quota_T = wanted_T - ties_WT[: shard.rank].sum(0, dtype=torch.int32)
    return Threshold(key_T, _tie_end(rows, key_T, quota_T, ties_T))


def select_by_partition(rows: ShardRows, count: int) -> Threshold:
    """`select_largest` for whole rows in host memory, where NumPy's vectorised partial sort costs about ten passes over a row."""
    key_T = torch.empty(len(rows), dtype=KEY_DTYPES[rows.logits.element_size()])
    tie_end_T = torch.empty(len(rows), dtype=torch.int32)
    smaller = rows.columns - count

    def select(block: slice, raw_BV: Tensor, _: list[Tensor]) -> None:
        x_BV = raw_BV.to(statistics_dtype(raw_BV.dtype)).numpy(force=True)
        partial_BV = numpy.partition(x_BV, smaller, axis=1)
        cut_B = partial_BV[:, smaller].copy()
        key_T[block] = order_keys(torch.from_numpy(cut_B).to(raw_BV.dtype))
        for position, x_V, kept, cut in zip(range(block.start, block.stop), x_BV, partial_BV[:, smaller:], cut_B, strict=True):
            quota = numpy.count_nonzero(kept == cut)
            tie_V = x_V == cut
            divided = 0 < quota < numpy.count_nonzero(tie_V)
            tie_end_T[position] = int(numpy.flatnonzero(tie_V)[quota - 1]) + 1 if divided else rows.columns

    for_each_block(rows, 0, select)
    return Threshold(key_T, tie_end_T)


def _histogram(rows: ShardRows, prefix_T: Tensor, byte: int) -> Tensor:
    """[T, 256] int32 counts of byte number `byte` of the keys whose higher bytes equal `prefix_T`."""
    shift = 8 * byte
    first = byte == rows.logits.element_size() - 1
    counts_T256 = torch.zeros(len(rows), DIGITS, dtype=torch.int32, device=rows.logits.device)
    for block, raw_BV in rows.blocks():
        key_BV = order_keys(raw_BV)
        digit_BV = (key_BV >> shift) & (DIGITS - 1)
        if first:  # the sign bit sorts the other way round from the rest of its byte
            digit_BV ^= DIGITS // 2
            match_BV = torch.ones_like(digit_BV, dtype=torch.int32)
        else:
            match_BV = (key_BV >> (shift + 8) == prefix_T[block, None]).int()
        counts_T256[block].scatter_add_(1, digit_BV.long(), match_BV)
    return counts_T256


def _walk_down(counts_T256: Tensor, wanted_T: Tensor) -> tuple[Tensor, Tensor]:
    """The digit that holds the `wanted_T`-th largest key (int64), and how many keys have a larger digit (int32)."""
    from_top_T256 = counts_T256.flip(1).cumsum(1, dtype=torch.int32)
    place_T = (from_top_T256 < wanted_T[:, None]).sum(1)
    digit_T = DIGITS - 1 - place_T
    here_T = counts_T256.gather(1, digit_T[:, None]).squeeze(1)
    return digit_T, from_top_T256.gather(1, place_T[:, None]).squeeze(1) - here_T


def _append_digit(prefix_T: Tensor, digit_T: Tensor, *, first: bool) -> Tensor:
    if first:
        return (digit_T - DIGITS // 2).to(prefix_T.dtype)
    return (prefix_T << 8) | digit_T.to(prefix_T.dtype)


def _tie_end(rows: ShardRows, key_T: Tensor, quota_T: Tensor, ties_T: Tensor) -> Tensor:
    """int32 column just behind the `quota_T`-th of a row's `ties_T` ties; 0 without a quota, all columns if it covers them all."""
    end_T = torch.where(quota_T >= ties_T, rows.columns, 0).to(torch.int32) * (quota_T > 0)
    divided_T = (quota_T > 0) & (quota_T < ties_T)
    for block, raw_BV in rows.blocks():
        if bool(divided_T[block].any()):
            seen_BV = (order_keys(raw_BV) == key_T[block, None]).cumsum(1, dtype=torch.int32)
            behind_B = (seen_BV < quota_T[block, None]).sum(1, dtype=torch.int32) + 1
            end_T[block] = torch.where(divided_T[block], behind_B, end_T[block])
    return end_T
