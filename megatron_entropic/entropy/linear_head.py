"""The output layer tile by tile: forward to per-token moments, backward to the gradients of hidden states and weight.

A tile is a rectangle of the logits, tokens by columns, and the only part of them that exists. Its memory is reused for the next
one, and in backward for its own gradient. Where nothing is selected from the rows a tile spans all tokens and few columns: the
weight, the largest operand, is then read once, and the gradient of a tile's weight rows is complete, written once in the
weight's dtype, never added up. A selection needs whole rows, so tiles then span all columns and few tokens.

Shapes: N rows of the whole sequence, T rows inside the mask, R rows and C columns of a tile, H hidden size.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_entropic.entropy.product_sum import ProductSum, added_to_main_grad, main_grad
from megatron_entropic.entropy.row_math import (
    Moments,
    TokenScalars,
    UpstreamGradients,
    local_moments,
    merge_moments,
    write_logits_gradient,
)
from megatron_entropic.entropy.selection import Threshold, select_largest
from megatron_entropic.entropy.shard import ShardRows, statistics_dtype
from megatron_entropic.entropy.token_statistics import Measured, Request, conclude

CHUNK_BYTES = 256 * 2**20
"""A tile has at most this much float32 logits, unless `chunk_tokens` says otherwise."""

TILES, MIN_COLUMNS, MIN_ELEMENTS = 64, 1024, 2**20
"""Tiles of all tokens: about so many, but none so narrow or so small that the products lose speed."""

BUFFER_BYTES = 2**19
"""Size of the float32 buffers that a tile is worked on in: small beside the tile, since the products take nearly all the time."""


class Tile(NamedTuple):
    """`rows` x `columns` of the logits; `target_R`: the column of the tile with the row's target, or -1."""

    rows: slice
    columns: slice
    logits: ShardRows
    target_R: Tensor


@dataclass(frozen=True)
class Head:
    """The computation, tile by tile. `lead_shape` is that of the whole sequence."""

    request: Request
    lead_shape: torch.Size
    sequence_parallel: bool
    chunk_tokens: int | None
    accumulate_main_grad: bool

    def gather_rows(self, hidden: Tensor, rows_T: Tensor | None) -> Tensor:
        """[T, H] hidden states inside the mask, from all ranks' slices under sequence parallelism."""
        if self.sequence_parallel:
            hidden = self.request.shard.all_gather(hidden)
        hidden_NH = hidden.reshape(-1, hidden.shape[-1])
        return hidden_NH if rows_T is None else hidden_NH[rows_T]

    def return_rows(self, grad_TH: Tensor, rows_T: Tensor | None) -> Tensor:
        """Hidden's gradient in the shape of this rank's hidden, summed over the ranks, from each rank's share [T, H]."""
        shard, shape = self.request.shard, (*self.lead_shape, grad_TH.shape[1])
        if not self.sequence_parallel:
            shard.all_reduce(grad_TH, dist.ReduceOp.SUM)
        if rows_T is not None:
            grad_NH = grad_TH.new_zeros(self.lead_shape.numel(), grad_TH.shape[1])
            grad_TH = grad_NH.index_copy_(0, rows_T, grad_TH)
        grad = grad_TH.view(shape)
        return shard.reduce_scatter(grad) if self.sequence_parallel else grad

    @property
    def splits_tokens(self) -> bool:
        """Tiles are some tokens by all columns if asked for, or if rows are selected from, which takes them whole."""
        return self.chunk_tokens is not None or self.request.selects

    def tiles(self, hidden_TH: Tensor, weight: Tensor, targets_T: Tensor) -> Iterator[Tile]:
        """All tiles of the logits, computed one at a time into the same memory; the same bits each time."""
        tokens, columns = len(hidden_TH), self.request.shard.columns
        if self.splits_tokens:
            height, width = self.chunk_tokens or max(1, CHUNK_BYTES // (4 * weight.shape[0])), columns
        else:
            height, width = tokens, max(-(-columns // TILES), MIN_COLUMNS, MIN_ELEMENTS // tokens)
            width = min(width, max(1, CHUNK_BYTES // (4 * tokens)))
        height, width = min(height, tokens), max(1, min(width, columns))
        column_T = self.request.shard.local_columns(targets_T)
        memory = hidden_TH.new_empty(height * width)
        for top in range(0, tokens, height):
            rows = slice(top, min(top + height, tokens))
            for left in range(0, max(columns, 1), width):
                span = slice(left, min(left + width, columns))
                shape = (rows.stop - rows.start, span.stop - span.start)
                logits_RC = torch.mm(hidden_TH[rows], weight[span].T, out=memory[: math.prod(shape)].view(shape))
                here_R = (column_T[rows] >= span.start) & (column_T[rows] < span.stop)
                yield Tile(
                    rows, span, ShardRows(logits_RC, None, shape[1], BUFFER_BYTES), torch.where(here_R, column_T[rows] - span.start, -1)
                )

    def measure(self, hidden: Tensor, weight: Tensor, targets_T: Tensor, rows_T: Tensor | None) -> Measured:
        """Forward: one rank's moments of every tile, then the ranks' in one go."""
        request = self.request
        pieces: list[tuple[Moments, Tensor]] = []
        thresholds: list[Threshold] = []
        # autocast would give these logits another dtype than the backward pass, which runs outside it
        with torch.autocast(device_type=hidden.device.type, enabled=False):
            if len(targets_T) > 0:
                for tile in self.tiles(self.gather_rows(hidden, rows_T), weight, targets_T):
                    threshold = None
                    if request.kept and request.selects:
                        threshold = select_largest(tile.logits, request.kept, request.shard)
                        thresholds.append(threshold)
                    moments = local_moments(tile.logits, tile.target_R, request.temperature, threshold, entropy=request.entropy)
                    pieces.append((moments, tile.target_R))
        threshold = Threshold(*(torch.cat(parts) for parts in zip(*thresholds, strict=True))) if thresholds else None
        return conclude(self._join(pieces, hidden), threshold, targets_T, rows_T, self.lead_shape, request)

    def _join(self, pieces: list[tuple[Moments, Tensor]], like: Tensor) -> Moments:
        if not pieces:
            empty = torch.zeros(3, 0, dtype=statistics_dtype(like.dtype), device=like.device)
            return Moments(empty[0], empty)
        moments = [moments for moments, _ in pieces]
        if self.splits_tokens:
            return Moments(torch.cat([m.max_T for m in moments]), torch.cat([m.sums_KT for m in moments], 1))
        return merge_moments(moments, [target_T for _, target_T in pieces], self.request.temperature)

    def gradients(
        self,
        hidden: Tensor,
        weight: Tensor,
        targets_T: Tensor,
        rows_T: Tensor | None,
        scalars: TokenScalars,
        threshold: Threshold | None,
        upstream: UpstreamGradients,
        wanted: tuple[bool, bool],
    ) -> tuple[Tensor | None, Tensor | None]:
        """Backward: the gradients of hidden and weight that are `wanted`; each tile's logits computed again, then overwritten."""
        if len(targets_T) == 0:
            return torch.zeros_like(hidden) if wanted[0] else None, torch.zeros_like(weight) if wanted[1] else None
        with torch.autocast(device_type=hidden.device.type, enabled=False):
            hidden_TH = self.gather_rows(hidden, rows_T)
            of_hidden = of_weight = None
            if wanted[0]:
                of_hidden = ProductSum(hidden_TH, hidden_TH.shape, pieces_overlap=not self.splits_tokens)
            if wanted[1]:
                buffer = main_grad(weight) if self.accumulate_main_grad else None
                of_weight = ProductSum(weight, weight.shape, pieces_overlap=self.splits_tokens, buffer=buffer)
            for tile in self.tiles(hidden_TH, weight, targets_T):
                cut = None if threshold is None else threshold.at(tile.rows)
                grad_RC = tile.logits.logits
                write_logits_gradient(
                    tile.logits,
                    tile.target_R,
                    self.request.temperature,
                    scalars.at(tile.rows),
                    cut,
                    upstream.at(tile.rows),
                    grad_RC,
                )
                if of_hidden is not None:
                    of_hidden.add(tile.rows, grad_RC, weight[tile.columns])
                if of_weight is not None:
                    of_weight.add(tile.columns, grad_RC.T, hidden_TH[tile.rows])
            grad_hidden = None if of_hidden is None else self.return_rows(of_hidden.total(), rows_T)
        if of_weight is None:
            return grad_hidden, None
        return grad_hidden, added_to_main_grad(weight) if self.accumulate_main_grad else of_weight.total()
