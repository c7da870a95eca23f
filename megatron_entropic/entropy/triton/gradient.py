# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""Triton kernel for ../row_math.py's `write_logits_gradient`: the same formula, each logit read and each gradient written once.

Bytes moved for a row of V logits of b bytes: b V read and b V written, or b V written alone outside the mask. Instructions a
column: 12, 19 with a clamp, one of them the exponential: q = p S / S_kept needs no second. common.py has the bounds.

Shapes: T unmasked tokens, N all rows, V this rank's real columns.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from megatron_entropic.entropy.records import Threshold, TokenScalars, UpstreamGradients
from megatron_entropic.entropy.shard import ShardRows
from megatron_entropic.entropy.triton import common
from megatron_entropic.entropy.triton.common import LN_2, LOG2_E, LOWEST, RowSource, is_kept, number_of_key, power_of_2, row_pointer


def write_logits_gradient(
    rows: ShardRows,
    column_T: Tensor,
    temperature: float,
    scalars: TokenScalars,
    threshold: Threshold | None,
    upstream: UpstreamGradients,
    out_NV: Tensor,
) -> None:
    """row_math.write_logits_gradient, and zeros in all the rest of contiguous `out_NV` [N, width]: each element is written once.

    A column is read and written by one thread, so `out_NV` may be the logits' own memory.
    """
    width = out_NV.shape[1]
    if out_NV.numel() == 0:
        return
    if rows.columns == 0 or len(rows) == 0 or all(g_T is None for g_T in upstream):
        out_NV.zero_()
        return
    position_N = None
    if rows.rows_T is not None:
        position_N = torch.full((rows.rows_total,), -1, dtype=torch.int32, device=out_NV.device)
        position_N[rows.rows_T] = torch.arange(len(rows), dtype=torch.int32, device=out_NV.device)
    source = RowSource.of(rows)
    block, span, splits = common.spans(width)
    upstream = UpstreamGradients(*(None if g_T is None else g_T.contiguous() for g_T in upstream))
    scalars = TokenScalars(*(None if x_T is None else x_T.contiguous() for x_T in scalars))  # type: ignore[arg-type]
    key_T = tie_end_T = None
    if upstream.kept_entropy_T is not None:
        assert threshold is not None
        key_T, tie_end_T = threshold.key_T.contiguous(), threshold.tie_end_T.contiguous()
    with torch.cuda.device_of(rows.logits):
        _gradient[(rows.rows_total * splits,)](
            *source,
            *(position_N, column_T.contiguous(), key_T, tie_end_T, *scalars, *upstream, out_NV),
            *(rows.columns, width, span, splits, 1 / temperature),
            BLOCK=block,
            **common.options(block),
        )


@triton.jit
def _gradient(
    logits_ptr,
    index_ptr,
    row_stride,
    column_stride,
    position_ptr,
    target_ptr,
    key_ptr,
    tie_end_ptr,
    max_ptr,
    log_sum_ptr,
    entropy_ptr,
    kept_log_sum_ptr,
    kept_entropy_ptr,
    for_log_prob_ptr,
    for_entropy_ptr,
    for_kept_ptr,
    out_ptr,
    columns,
    width,
    span,
    splits,
    inverse_temperature,
    BLOCK: tl.constexpr,
):
    """One span of one of the N rows, from the logits or, outside the mask and the real columns, zeros.

    With p = exp(d - log S), g_y, g_H, g_Hc the upstream gradients over the temperature, ratio = S / S_kept:
    g_i = g_y 1[i = y] - p (log p g_H + (H g_H + g_y)) - 1[kept] p ratio (log p + log ratio + Hc) g_Hc
    """
    program = tl.program_id(0).to(tl.int64)
    out_row = program // splits
    first = (program % splits).to(tl.int32) * span
    end = tl.minimum(first + span, width)
    out_row_ptr = out_ptr + out_row * width
    lane = tl.arange(0, BLOCK)
    row = out_row
    if position_ptr is not None:
        row = tl.load(position_ptr + out_row).to(tl.int64)
    if row < 0:
        zero = tl.zeros((BLOCK,), out_ptr.dtype.element_ty)
        for start in range(first, end, BLOCK):
            tl.store(out_row_ptr + start + lane, zero, mask=start + lane < end)
    else:
        row_ptr = row_pointer(logits_ptr, index_ptr, row, row_stride)
        target = tl.load(target_ptr + row).to(tl.int32)
        top = tl.load(max_ptr + row)
        log_sum = tl.load(log_sum_ptr + row) * LOG2_E
        scale = inverse_temperature * LOG2_E
        for_log_prob = 0.0
        if for_log_prob_ptr is not None:
            for_log_prob = tl.load(for_log_prob_ptr + row) * inverse_temperature
        slope = 0.0
        base = for_log_prob
        if for_entropy_ptr is not None:
            slope = tl.load(for_entropy_ptr + row) * inverse_temperature
            base += tl.load(entropy_ptr + row) * slope
            slope *= LN_2
        cut, kept_slope, kept_base = 0.0, 0.0, 0.0
        tie_end = 0
        if for_kept_ptr is not None:
            cut = number_of_key(tl.load(key_ptr + row), logits_ptr.dtype.element_ty)
            tie_end = tl.load(tie_end_ptr + row)
            log_ratio = tl.load(log_sum_ptr + row) - tl.load(kept_log_sum_ptr + row)
            kept_slope = tl.load(for_kept_ptr + row) * inverse_temperature * tl.exp(log_ratio)
            kept_base = (log_ratio + tl.load(kept_entropy_ptr + row)) * kept_slope
            kept_slope *= LN_2
        real_end = tl.minimum(end, columns)
        whole = first + tl.maximum(real_end - first, 0) // BLOCK * BLOCK
        for start in range(first, whole, BLOCK):
            column = start + lane
            x = tl.load(row_ptr + column.to(tl.int64) * column_stride).to(tl.float32)
            g = _column_gradient(
                x,
                column,
                top,
                log_sum,
                scale,
                target,
                for_log_prob,
                slope,
                base,
                cut,
                tie_end,
                kept_slope,
                kept_base,
                for_kept_ptr is not None,
            )
            tl.store(out_row_ptr + column, g.to(out_ptr.dtype.element_ty))
        for start in range(whole, end, BLOCK):
            column = start + lane
            real = column < columns
            x = tl.load(row_ptr + column.to(tl.int64) * column_stride, mask=real, other=0.0).to(tl.float32)
            g = _column_gradient(
                x,
                column,
                top,
                log_sum,
                scale,
                target,
                for_log_prob,
                slope,
                base,
                cut,
                tie_end,
                kept_slope,
                kept_base,
                for_kept_ptr is not None,
            )
            tl.store(out_row_ptr + column, tl.where(real, g, 0.0).to(out_ptr.dtype.element_ty), mask=column < end)


@triton.jit
def _column_gradient(
    x,
    column,
    top,
    log_sum,
    scale,
    target,
    for_log_prob,
    slope,
    base,
    cut,
    tie_end,
    kept_slope,
    kept_base,
    CLAMPS: tl.constexpr,
):
    """`log_sum` and `scale` make log_p a power of 2; the slopes are per such unit."""
    log_p = (x - top) * scale - log_sum
    log_p = tl.where(log_p < LOWEST, LOWEST, log_p)
    factor = log_p * slope + base
    if CLAMPS:
        factor += tl.where(is_kept(x, column, cut, tie_end), log_p * kept_slope + kept_base, 0.0)
    return tl.where(column == target, for_log_prob, 0.0) - power_of_2(log_p) * factor
