# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""Triton kernels for ../selection.py: the same radix select, one byte a round, with the same collectives.

Bytes moved for a row of V logits of b bytes: b V a round, b rounds; then at most b V, about half of it as a rule, to find where
the quota of ties ends, and none of it for a row whose ties are all kept or all left out (float32 nearly always). So with the
moments' read and the gradient, a clamp in bfloat16 costs 5.5 passes over the logits where there are 3 without.

A round's histogram lives in shared memory (digit_counts.py); a column takes 11 instructions in the first round and 15 in the
others, about what the memory leaves time for (common.py). Each span adds its counts, those that are not 0, to the row's in device
memory.

Shapes: T unmasked tokens, V this rank's real columns, W tensor ranks.
"""

import torch
import torch.distributed as dist
import triton
import triton.language as tl
from torch import Tensor

from megatron_entropic.entropy.records import DIGITS, KEY_DTYPES, Threshold
from megatron_entropic.entropy.shard import ShardRows, VocabShard
from megatron_entropic.entropy.triton import common
from megatron_entropic.entropy.triton.common import RowSource, number_of_key, order_keys, row_pointer
from megatron_entropic.entropy.triton.digit_counts import add_to_counts, counts_to_zero, read_counts


def select_largest(rows: ShardRows, count: int, shard: VocabShard) -> Threshold:
    """selection.select_largest for 16- and 32-bit logits: the same key, the same columns kept, the same collectives."""
    element_size, device = rows.logits.element_size(), rows.logits.device
    key_T = torch.zeros(len(rows), dtype=KEY_DTYPES[element_size], device=device)
    wanted_T = torch.full((len(rows),), count, dtype=torch.int32, device=device)
    ties_T = torch.empty_like(wanted_T)
    source = RowSource.of(rows)
    with torch.cuda.device_of(rows.logits):
        for byte in reversed(range(element_size)):
            first_round = byte == element_size - 1
            local_T256 = _histogram(source, rows.columns, key_T, byte, first_round)
            counts_T256 = shard.all_reduce(local_T256.clone() if shard.ranks > 1 else local_T256, dist.ReduceOp.SUM)
            _walk_down[(len(rows),)](counts_T256, local_T256, key_T, wanted_T, ties_T, FIRST=first_round, num_warps=1)
        ties_WT = shard.all_gather(ties_T[None])
        quota_T = wanted_T
        if shard.rank > 0:
            quota_T = wanted_T - ties_WT[: shard.rank].sum(0, dtype=torch.int32)
        tie_end_T = torch.zeros_like(quota_T)
        if rows.columns > 0:
            block, _, _ = common.spans(rows.columns)
            _find_tie_end[(len(rows),)](*source, key_T, quota_T, ties_T, tie_end_T, rows.columns, BLOCK=block, **common.options(block))
    return Threshold(key_T, tie_end_T)


def _histogram(source: RowSource, columns: int, prefix_T: Tensor, byte: int, first_round: bool) -> Tensor:
    """[T, 256] int32 counts of byte number `byte` of the keys whose higher bytes equal `prefix_T`."""
    counts_T256 = torch.zeros(len(prefix_T), DIGITS, dtype=torch.int32, device=prefix_T.device)
    if columns > 0:
        block, span, splits = common.spans(columns)
        _count_digits[(len(prefix_T) * splits,)](
            *(*source, prefix_T, counts_T256, columns, span, splits),
            SHIFT=8 * byte,
            FIRST=first_round,
            BLOCK=block,
            **common.options(block),
        )
    return counts_T256


@triton.jit
def _count_digits(
    logits_ptr,
    index_ptr,
    row_stride,
    column_stride,
    prefix_ptr,
    counts_ptr,
    columns,
    span,
    splits,
    SHIFT: tl.constexpr,
    FIRST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Adds one span of one row to the row's 256 counts (integers: in any order the same)."""
    program = tl.program_id(0).to(tl.int64)
    row = program // splits
    first = (program % splits).to(tl.int32) * span
    end = tl.minimum(first + span, columns)
    whole = first + (end - first) // BLOCK * BLOCK
    row_ptr = row_pointer(logits_ptr, index_ptr, row, row_stride)
    prefix = tl.load(prefix_ptr + row).to(tl.int32)
    lane = tl.arange(0, BLOCK)
    counts = counts_to_zero()
    for start in range(first, whole, BLOCK):
        key = order_keys(tl.load(row_ptr + (start + lane).to(tl.int64) * column_stride))
        if FIRST:
            counts = add_to_counts(counts, _digit(key, SHIFT, FIRST), None)
        else:
            counts = add_to_counts(counts, _digit(key, SHIFT, FIRST), (key >> (SHIFT + 8)) == prefix)
    if whole < end:
        column = whole + lane
        key = order_keys(tl.load(row_ptr + column.to(tl.int64) * column_stride, mask=column < end, other=0.0))
        counted = column < end
        if not FIRST:
            counted = counted & ((key >> (SHIFT + 8)) == prefix)
        counts = add_to_counts(counts, _digit(key, SHIFT, FIRST), counted)
    counts = read_counts(counts)
    bin = tl.arange(0, 256)
    tl.atomic_add(counts_ptr + row * 256 + bin, counts, mask=counts > 0, sem="relaxed")


@triton.jit
def _digit(key, SHIFT: tl.constexpr, FIRST: tl.constexpr):
    digit = (key >> SHIFT) & 255
    if FIRST:  # the sign bit sorts the other way round from the rest of its byte
        digit ^= 128
    return digit


@triton.jit
def _walk_down(counts_ptr, local_ptr, key_ptr, wanted_ptr, ties_ptr, FIRST: tl.constexpr):
    """Appends to a row's key the digit that holds the wanted-th largest, and takes from wanted those with larger digits.

    ties: keys of this rank alone with the bytes so far; after the last round, its ties at the threshold.
    """
    row = tl.program_id(0).to(tl.int64)
    bin = tl.arange(0, 256)
    counts = tl.load(counts_ptr + row * 256 + bin)
    wanted = tl.load(wanted_ptr + row)
    from_top = tl.cumsum(counts, reverse=True)
    digit = tl.sum((from_top >= wanted).to(tl.int32)) - 1
    above = tl.sum(tl.where(bin == digit, from_top - counts, 0))
    if FIRST:
        key = digit - 128
    else:
        key = (tl.load(key_ptr + row).to(tl.int32) << 8) | digit
    tl.store(key_ptr + row, key.to(key_ptr.dtype.element_ty))
    tl.store(wanted_ptr + row, wanted - above)
    tl.store(ties_ptr + row, tl.load(local_ptr + row * 256 + digit))


@triton.jit
def _find_tie_end(
    logits_ptr, index_ptr, row_stride, column_stride, key_ptr, quota_ptr, ties_ptr, tie_end_ptr, columns, BLOCK: tl.constexpr
):
    """The column just behind a row's quota-th tie; its program stops there, and reads nothing when all or none are kept."""
    row = tl.program_id(0).to(tl.int64)
    quota = tl.load(quota_ptr + row)
    ties = tl.load(ties_ptr + row)
    tie_end = tl.where(quota > 0, columns, 0)
    if (quota > 0) & (quota < ties):
        row_ptr = row_pointer(logits_ptr, index_ptr, row, row_stride)
        cut = number_of_key(tl.load(key_ptr + row), logits_ptr.dtype.element_ty)
        lane = tl.arange(0, BLOCK)
        seen = 0
        start = 0
        while (seen < quota) & (start < columns):  # the second only for a row with a NaN at the threshold
            column = start + lane
            x = tl.load(row_ptr + column.to(tl.int64) * column_stride, mask=column < columns, other=float("nan")).to(tl.float32)
            tie = (x == cut).to(tl.int32)
            here = tl.sum(tie)
            if seen + here >= quota:
                reached = tl.cumsum(tie) + seen >= quota
                tie_end = start + BLOCK - tl.sum(reached.to(tl.int32)) + 1
            seen += here
            start += BLOCK
    tl.store(tie_end_ptr + row, tie_end)
