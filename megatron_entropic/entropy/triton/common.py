# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""Common parts of the kernels: how a program finds its row and columns, order-preserving keys, exp, block sizes.

A program works on one row and one span of at most SPAN columns, in blocks of at most BLOCK columns. Whole blocks are loaded
without a mask, so that loads are 16 bytes wide whatever the true vocabulary is (it is rarely a multiple of 16, the stride
between rows nearly always is); only the last block of a row has one.

Sizes, from the bytes moved. Every kernel reads the logits once, so what matters is to keep enough bytes in flight: on an H200
about 4.3 TB/s times 0.7 us = 3 MB, 23 KB for each of its 132 multiprocessors. BLOCK = 4096 with 8 warps gives a thread 16
columns, two 16-byte loads in bfloat16 and four in float32; at up to 80 registers a thread (64), three such programs (four) share a
multiprocessor: 24 KB in flight (32), twice that in float32. Triton 3.7 and 3.9 keep within it. The other bound is the
instructions: at 1.75 GHz a column of bfloat16 has 13 of them while it is read at that rate, 26 while it is read and written, so the
kernels count theirs.
SPAN = 32,768 cuts a vocabulary of 152k into five programs: 2048 rows make ten waves instead of two, so the last, partly
filled wave costs little, and 64 rows still reach every multiprocessor. The partial results are at most 32 bytes for each 64 KB read.
The span depends on the vocabulary alone, never on the number of rows: a row's bits do not depend on the rows beside it.

Shapes: T unmasked tokens, N all rows.
"""

import os
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from megatron_entropic.entropy.shard import ShardRows

BLOCK = 4096
SPAN = 32_768
COLUMNS_PER_THREAD = 16
LOWEST = tl.constexpr(-1e4)
"""As in records.py: exp of this, and 2 to this power, is 0."""

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
PTX = tl.constexpr(os.environ.get("TRITON_INTERPRET") != "1" and torch.version.hip is None)
"""Whether the kernels are compiled for an NVIDIA GPU."""


class RowSource(NamedTuple):
    """Addressing of row t of the T rows: at element index_T[t] * row_stride of `logits` (t * row_stride without an index)."""

    logits: Tensor
    index_T: Tensor | None
    row_stride: int
    column_stride: int

    @classmethod
    def of(cls, rows: ShardRows) -> "RowSource":
        """Any layout, nothing copied but row numbers."""
        logits = rows.logits
        index_T = None if rows.rows_T is None else rows.rows_T.contiguous()
        lead_shape, lead_strides = logits.shape[:-1], logits.stride()[:-1]
        row_stride = _common_stride(lead_shape, lead_strides)
        if row_stride is not None:
            return cls(logits, index_T, row_stride, logits.stride(-1))
        # No one stride leads from row to row (a transposed [sequence, batch, V]): give every row its own offset, in units that
        # show the compiler how the rows are aligned.
        unit = 1
        while all(stride % (2 * unit) == 0 for stride in lead_strides) and unit < 16:
            unit *= 2
        flat_T = torch.arange(rows.rows_total, device=logits.device) if index_T is None else index_T
        offset_T = torch.zeros_like(flat_T)
        for position_T, stride in zip(torch.unravel_index(flat_T, lead_shape), lead_strides, strict=True):
            offset_T += position_T * (stride // unit)
        return cls(logits, offset_T, unit, logits.stride(-1))


def _common_stride(lead_shape: torch.Size, lead_strides: tuple[int, ...]) -> int | None:
    """Elements from one row to the next when that is the same for all rows, in their flat order; 0 for a single row."""
    row_stride, rows_below = 0, 1
    for size, stride in zip(reversed(lead_shape), reversed(lead_strides), strict=True):
        if size == 1:
            continue
        if rows_below == 1:
            row_stride = stride
        elif stride != row_stride * rows_below:
            return None
        rows_below *= size
    return row_stride


def warps(block: int) -> int:
    """Warps of a program: 8 for a whole BLOCK, fewer for a small vocabulary, never more threads than columns."""
    return max(1, block // (32 * COLUMNS_PER_THREAD))


def options(block: int) -> dict[str, Any]:
    """Compiler options of a launch: multiplications and additions fuse, which the instruction counts rely on."""
    return {"num_warps": warps(block), "enable_fp_fusion": True}


def spans(columns: int) -> tuple[int, int, int]:
    """(block, columns of a span, spans of a row); spans are whole blocks of nearly equal number."""
    block = min(BLOCK, max(128, triton.next_power_of_2(columns)))
    blocks = triton.cdiv(columns, block)
    per_span = triton.cdiv(blocks, triton.cdiv(blocks, max(1, SPAN // block)))
    return block, per_span * block, triton.cdiv(blocks, per_span)


@triton.jit
def row_pointer(logits_ptr, index_ptr, row, row_stride):
    """Address of a row's column 0; `row` is 64-bit, since rows x columns passes 2^31."""
    if index_ptr is not None:
        row = tl.load(index_ptr + row).to(tl.int64)
    return logits_ptr + row * row_stride


@triton.jit
def order_keys(x):
    """int32 that compare as the numbers do (selection.py); the two zeros share one key."""
    if x.dtype.primitive_bitwidth == 16:
        bits = x.to(tl.int16, bitcast=True).to(tl.int32)
        key = bits ^ ((bits >> 15) & 0x7FFF)
    else:
        bits = x.to(tl.int32, bitcast=True)
        key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return key + (key == -1).to(tl.int32)


@triton.jit
def number_of_key(key, dtype: tl.constexpr):
    """The number of type `dtype` whose key this is, as float32 (exact)."""
    if dtype.primitive_bitwidth == 32:
        return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    else:
        key = key.to(tl.int32)
        bits = key ^ ((key >> 15) & 0x7FFF)
        if dtype == tl.bfloat16:  # the upper half of a float32; as bits, since not every conversion keeps subnormal numbers
            return (bits << 16).to(tl.float32, bitcast=True)
        else:
            return bits.to(tl.int16).to(dtype, bitcast=True).to(tl.float32)


@triton.jit
def power_of_2(x):
    """2 ** x in one instruction; tl.exp2 spends four to return numbers below 2^-126, which no sum here can see."""
    if PTX:
        return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
    else:
        return tl.exp2(x)


@triton.jit
def is_kept(x, column, cut, tie_end):
    """Membership of the K largest: comparing numbers equals comparing keys (-0.0 == 0.0 there too), and costs less."""
    return (x > cut) | ((x == cut) & (column < tie_end))
