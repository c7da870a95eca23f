# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""Triton kernel for ../row_math.py's `local_moments`: the same sums, with one read of the logits.

Bytes moved for a row of V logits of b bytes: b V; everything else is per token. Instructions a column: 11, 15 with a clamp, 3 more
for the squares, one of them the exponential (powers of 2; the factor log2(e) goes with the temperature's). common.py has the
bounds.

Accumulators are float32, one set for every 16 bytes of a block, so that each thread keeps its own maximum and sums: the loop
over the blocks has no reduction over threads and no barrier, and rescales once in 8 columns (4 in float32). They meet when the
span is through. Each adds up a few dozen terms, the rest is a tree.

Shapes: T unmasked tokens, V this rank's real columns, J spans of all rows, K = 3 sums (5 with a clamp).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from megatron_entropic.entropy.records import Moments, Threshold
from megatron_entropic.entropy.shard import ShardRows
from megatron_entropic.entropy.triton import common
from megatron_entropic.entropy.triton.common import LN_2, LOG2_E, LOWEST, RowSource, number_of_key, power_of_2, row_pointer


def local_moments(
    rows: ShardRows,
    column_T: Tensor,
    temperature: float,
    threshold: Threshold | None,
    *,
    entropy: bool = True,
    squares: bool = False,
) -> Moments:
    """row_math.local_moments, reading the logits once; without `entropy`, sum d exp(d) is left out and stays 0."""
    count, sums = len(rows), 3 if threshold is None else 5

    def moments_of(parts: int) -> Moments:
        max_J = torch.full((parts,), -torch.inf, dtype=torch.float32, device=rows.logits.device)
        sums_KJ = torch.zeros(sums, parts, dtype=torch.float32, device=rows.logits.device)
        return Moments(max_J, sums_KJ, torch.zeros_like(sums_KJ[:2]) if squares else None)

    if rows.columns == 0 or count == 0:
        return moments_of(count)
    source = RowSource.of(rows)
    block, span, splits = common.spans(rows.columns)
    partial = moments_of(count * splits)
    column_T = column_T.contiguous()
    key_T, tie_end_T = (None, None) if threshold is None else (threshold.key_T.contiguous(), threshold.tie_end_T.contiguous())
    with torch.cuda.device_of(rows.logits):
        _moments[(count * splits,)](
            *source,
            *(column_T, key_T, tie_end_T, *partial),
            *(rows.columns, span, splits, count * splits, 1 / temperature),
            BLOCK=block,
            PER=16 // rows.logits.element_size(),
            ENTROPY=entropy,
            **common.options(block),
        )
        if splits == 1:
            return partial
        joined = moments_of(count)
        _join_spans[(count,)](
            *(*partial, column_T, *joined),
            *(span, splits, count * splits, count, 1 / temperature),
            SUMS=sums,
            ENTROPY=entropy,
            SPLITS=triton.next_power_of_2(splits),
            num_warps=1,
        )
    return joined


@triton.jit(do_not_specialize=["programs"])  # it varies from call to call
def _moments(
    logits_ptr,
    index_ptr,
    row_stride,
    column_stride,
    target_ptr,
    key_ptr,
    tie_end_ptr,
    max_ptr,
    sums_ptr,
    squares_ptr,
    columns,
    span,
    splits,
    programs,
    inverse_temperature,
    BLOCK: tl.constexpr,
    PER: tl.constexpr,
    ENTROPY: tl.constexpr,
):
    """One span of one row: its maximum, and the sums about it. PER: columns of 16 bytes."""
    program = tl.program_id(0).to(tl.int64)
    row = program // splits
    first = (program % splits).to(tl.int32) * span
    end = tl.minimum(first + span, columns)
    whole = first + (end - first) // BLOCK * BLOCK
    row_ptr = row_pointer(logits_ptr, index_ptr, row, row_stride)
    scale = inverse_temperature * LOG2_E
    cut, above_cut = 0.0, 0.0
    tie_end = 0
    if key_ptr is not None:
        key = tl.load(key_ptr + row)
        cut = number_of_key(key, logits_ptr.dtype.element_ty)
        above_cut = number_of_key(key + 1, logits_ptr.dtype.element_ty)
        tie_end = tl.load(tie_end_ptr + row)
    offset = tl.arange(0, BLOCK // PER)[:, None] * PER + tl.arange(0, PER)[None, :]
    top = tl.full((BLOCK // PER,), float("-inf"), tl.float32)
    exp_sum = tl.zeros((BLOCK // PER,), tl.float32)
    dexp_sum, kept_sum, kept_dexp_sum, square_sum, dsquare_sum = exp_sum, exp_sum, exp_sum, exp_sum, exp_sum
    for start in range(first, whole, BLOCK):
        x = tl.load(row_ptr + (start + offset).to(tl.int64) * column_stride).to(tl.float32)
        top, exp_sum, dexp_sum, kept_sum, kept_dexp_sum, square_sum, dsquare_sum = _add_block(
            x,
            start,
            scale,
            cut,
            above_cut,
            tie_end,
            top,
            exp_sum,
            dexp_sum,
            kept_sum,
            kept_dexp_sum,
            square_sum,
            dsquare_sum,
            key_ptr is not None,
            ENTROPY,
            squares_ptr is not None,
        )
    if whole < end:
        column = whole + offset
        x = tl.load(row_ptr + column.to(tl.int64) * column_stride, mask=column < end, other=float("-inf")).to(tl.float32)
        top, exp_sum, dexp_sum, kept_sum, kept_dexp_sum, square_sum, dsquare_sum = _add_block(
            x,
            whole,
            scale,
            cut,
            above_cut,
            tie_end,
            top,
            exp_sum,
            dexp_sum,
            kept_sum,
            kept_dexp_sum,
            square_sum,
            dsquare_sum,
            key_ptr is not None,
            ENTROPY,
            squares_ptr is not None,
        )
    span_top = tl.max(top)
    shift = _shift(top, span_top, scale)
    weight = power_of_2(shift)
    span_exp_sum = tl.sum(weight * exp_sum)
    bad = span_exp_sum != span_exp_sum
    if bad:  # a NaN or +inf; which one is told by the maximum, and comparisons skip a NaN: look again
        nans = 0
        for start in range(first, end, BLOCK):
            column = start + offset
            x = tl.load(row_ptr + column.to(tl.int64) * column_stride, mask=column < end, other=0.0).to(tl.float32)
            nans += tl.sum((x != x).to(tl.int32))
        span_top = tl.where(nans > 0, float("nan"), span_top)
    target = tl.load(target_ptr + row)
    here = (target >= first) & (target < end)
    x = tl.load(row_ptr + tl.where(here, target, 0) * column_stride).to(tl.float32)
    target_d = tl.where(here, (x - _origin(span_top)) * inverse_temperature, 0.0)
    tl.store(max_ptr + program, span_top)
    tl.store(sums_ptr + program, span_exp_sum)
    if ENTROPY:
        tl.store(sums_ptr + programs + program, tl.sum(weight * (dexp_sum + shift * exp_sum)) * LN_2)
    tl.store(sums_ptr + 2 * programs + program, target_d)
    if squares_ptr is not None:
        tl.store(squares_ptr + program, tl.sum(weight * weight * square_sum))
        tl.store(squares_ptr + programs + program, tl.sum(weight * weight * (dsquare_sum + shift * square_sum)) * LN_2)
    if key_ptr is not None:
        # the columns left of tie_end in its group of PER, which _add_block could not tell apart from those right of it
        column = tie_end // PER * PER + tl.arange(0, PER)
        counted = (column >= first) & (column < end) & (column < tie_end)
        x = tl.load(row_ptr + column.to(tl.int64) * column_stride, mask=counted, other=float("nan")).to(tl.float32)
        ties = tl.sum((x == cut).to(tl.float32))
        cut_d = tl.maximum((cut - _origin(span_top)) * scale, LOWEST)
        cut_exp = tl.where(ties > 0, ties * power_of_2(cut_d), 0.0)
        span_kept_sum = tl.sum(weight * kept_sum) + cut_exp
        span_kept_dexp_sum = tl.sum(weight * (kept_dexp_sum + shift * kept_sum)) + cut_d * cut_exp
        tl.store(sums_ptr + 3 * programs + program, tl.where(bad, float("nan"), span_kept_sum))
        tl.store(sums_ptr + 4 * programs + program, tl.where(bad, float("nan"), span_kept_dexp_sum * LN_2))


@triton.jit
def _add_block(
    x,
    start,
    scale,
    cut,
    above_cut,
    tie_end,
    top,
    exp_sum,
    dexp_sum,
    kept_sum,
    kept_dexp_sum,
    square_sum,
    dsquare_sum,
    CLAMPS: tl.constexpr,
    ENTROPY: tl.constexpr,
    SQUARES: tl.constexpr,
):
    """Every group's online maximum and sums (in powers of 2: d log2(e)) with its PER columns of one more block."""
    new_top = tl.maximum(top, tl.max(x, axis=1))
    d = (x - _origin(new_top)[:, None]) * scale
    d = tl.where(d < LOWEST, LOWEST, d)  # not maximum, which loses a NaN
    e = power_of_2(d)
    shift = _shift(top, new_top, scale)
    weight = power_of_2(shift)
    if ENTROPY:
        dexp_sum = weight * (dexp_sum + shift * exp_sum) + tl.sum(d * e, axis=1)
    if SQUARES:
        dsquare_sum = weight * weight * (dsquare_sum + shift * square_sum) + tl.sum(d * e * e, axis=1)
        square_sum = weight * weight * square_sum + tl.sum(e * e, axis=1)
    exp_sum = weight * exp_sum + tl.sum(e, axis=1)
    if CLAMPS:
        # One comparison a column: a group left of tie_end keeps its ties, one right of it or across it does not.
        group_end = start + (tl.arange(0, x.shape[0]) + 1) * x.shape[1]
        least = tl.where(group_end <= tie_end, cut, above_cut)
        kept = tl.where(x >= least[:, None], e, 0.0)
        kept_dexp_sum = weight * (kept_dexp_sum + shift * kept_sum) + tl.sum(d * kept, axis=1)
        kept_sum = weight * kept_sum + tl.sum(kept, axis=1)
    return new_top, exp_sum, dexp_sum, kept_sum, kept_dexp_sum, square_sum, dsquare_sum


@triton.jit
def _shift(top, new_top, scale):
    """d of an old maximum from a new one; LOWEST where there was no finite logit."""
    shift = (_origin(top) - _origin(new_top)) * scale
    return tl.where((top == float("-inf")) | (shift < LOWEST), LOWEST, shift)


@triton.jit
def _origin(top):
    """The origin of d: 0 where there is no finite logit, so that -inf minus -inf is never formed."""
    return tl.where(top == float("-inf"), 0.0, top)


@triton.jit(do_not_specialize=["programs", "rows"])
def _join_spans(
    part_max_ptr,
    part_sums_ptr,
    part_squares_ptr,
    target_ptr,
    max_ptr,
    sums_ptr,
    squares_ptr,
    span,
    splits,
    programs,
    rows,
    inverse_temperature,
    SUMS: tl.constexpr,
    ENTROPY: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """One row's spans, about the row's maximum; reads 16 to 32 bytes a span."""
    row = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, SPLITS)
    exists = split < splits
    part = row * splits + split
    part_max = tl.load(part_max_ptr + part, mask=exists, other=float("-inf"))
    top = tl.max(part_max)
    top = tl.where(tl.sum((part_max != part_max).to(tl.int32)) > 0, float("nan"), top)
    shift = tl.where(part_max == float("-inf"), 0.0, (part_max - top) * inverse_temperature)
    holds_target = split == tl.load(target_ptr + row) // span
    target_d = tl.load(part_sums_ptr + 2 * programs + part, mask=exists & holds_target, other=0.0)
    tl.store(sums_ptr + 2 * rows + row, tl.sum(tl.where(holds_target, target_d + shift, 0.0)))
    shift = tl.where(shift < LOWEST, LOWEST, shift)
    scale = tl.exp(shift)
    for first in tl.static_range(0, SUMS, 3):  # sums 0 and 1, and with a clamp 3 and 4
        exp_sum = tl.load(part_sums_ptr + first * programs + part, mask=exists, other=0.0)
        dexp_sum = tl.load(part_sums_ptr + (first + 1) * programs + part, mask=exists, other=0.0)
        tl.store(sums_ptr + first * rows + row, tl.sum(scale * exp_sum))
        if ENTROPY or first > 0:
            tl.store(sums_ptr + (first + 1) * rows + row, tl.sum(scale * (dexp_sum + shift * exp_sum)))
    if squares_ptr is not None:
        square_sum = tl.load(part_squares_ptr + part, mask=exists, other=0.0)
        dsquare_sum = tl.load(part_squares_ptr + programs + part, mask=exists, other=0.0)
        tl.store(squares_ptr + row, tl.sum(scale * scale * square_sum))
        tl.store(squares_ptr + rows + row, tl.sum(scale * scale * (dsquare_sum + shift * square_sum)))
    tl.store(max_ptr + row, top)
