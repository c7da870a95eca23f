"""The output layer tile by tile: forward to per-token moments, backward to the gradients of hidden states and weight.

A tile is a rectangle of the logits, tokens by columns, and the only part of them that exists. Its memory is reused for the next
one, and in backward for its own gradient. Where nothing is selected from the rows a tile spans all tokens and few columns: the
weight, the largest operand, is then read once, and the gradient of a tile's weight rows is complete, written once in the
weight's dtype, never added up. A selection needs whole rows, so tiles then span all columns and few tokens. How many, system/
logits_tiles.py says for the device.

Shapes: N rows of the whole sequence, T unmasked tokens, R rows and C columns of a tile, J tiles of a chunk, H hidden size.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from megatron_entropic.entropy.device_path import memory_of_gpu
from megatron_entropic.entropy.gradient_accumulation import ProductSum, added_to_main_grad, main_grad
from megatron_entropic.entropy.moments import merge_moments
from megatron_entropic.entropy.records import Moments, Threshold, TokenScalars, UpstreamGradients
from megatron_entropic.entropy.row_math import local_moments, write_logits_gradient
from megatron_entropic.entropy.selection import select_largest
from megatron_entropic.entropy.sequence_chunks import HiddenGradient, HiddenRows
from megatron_entropic.entropy.shard import ShardRows, statistics_dtype
from megatron_entropic.entropy.token_statistics import Measured, Request, conclude
from megatron_entropic.system.logits_tiles import LogitsShape, TileShape, tile_shape

BUFFER_BYTES = 2**18
"""Size of the float32 buffers that a tile is worked on in: small beside the tile, since the products take nearly all the time."""


class Tile(NamedTuple):
    """`rows` x `columns` of the logits.

    Attributes:
        logits: [R, row stride]; the columns behind the tile's are there to align its rows, and hold anything.
        target_R: the column of the tile with the row's target, or -1.
    """

    rows: slice
    columns: slice
    logits: ShardRows
    target_R: Tensor


@dataclass(frozen=True)
class Head:
    """The computation, tile by tile."""

    request: Request
    rows: HiddenRows
    chunk_tokens: int | None
    accumulate_main_grad: bool

    @property
    def splits_tokens(self) -> bool:
        """Tiles are some tokens by all columns if asked for, or if rows are selected from, which takes them whole."""
        return self.chunk_tokens is not None or self.request.selects

    def tile_shape(self, hidden_TH: Tensor) -> TileShape:
        """Of the tiles of a chunk's logits."""
        shard = self.request.shard
        logits = LogitsShape(len(hidden_TH), shard.columns, shard.width, hidden_TH.element_size())
        memory = memory_of_gpu(hidden_TH.device)
        return tile_shape(memory, logits, selects=self.request.selects, chunk_tokens=self.chunk_tokens)

    def tiles(self, hidden_TH: Tensor, weight: Tensor, targets_T: Tensor) -> Iterator[Tile]:
        """All tiles of the logits, computed one at a time into the same memory; the same bits each time."""
        tokens, columns = len(hidden_TH), self.request.shard.columns
        shape = self.tile_shape(hidden_TH)
        column_T = self.request.shard.local_columns(targets_T)
        memory_M = hidden_TH.new_empty(shape.elements)
        for top in range(0, tokens, shape.tokens):
            rows = slice(top, min(top + shape.tokens, tokens))
            for left in range(0, max(columns, 1), shape.columns):
                span = slice(left, min(left + shape.columns, columns))
                height, width = rows.stop - rows.start, span.stop - span.start
                stride = shape.row_stride(width)
                logits = ShardRows(memory_M[: height * stride].view(height, stride), None, width, BUFFER_BYTES)
                torch.mm(hidden_TH[rows], weight[span].T, out=logits.logits[:, :width])
                here_R = (column_T[rows] >= span.start) & (column_T[rows] < span.stop)
                yield Tile(rows, span, logits, torch.where(here_R, column_T[rows] - span.start, -1))

    def measure(self, hidden: Tensor, weight: Tensor, targets_T: Tensor) -> Measured:
        """Forward: one rank's moments of every tile, then the ranks' in one go."""
        moments: list[Moments] = []
        thresholds: list[Threshold] = []
        # autocast would give these logits another dtype than the backward pass, which runs outside it
        with torch.autocast(device_type=hidden.device.type, enabled=False):
            for chunk, hidden_TH in self.rows.each(hidden):
                moments.append(self._measure_chunk(hidden_TH, weight, targets_T[chunk.rows], thresholds))
        if moments:
            squares = [m.squares_2T for m in moments if m.squares_2T is not None]
            sums_KT = torch.cat([m.sums_KT for m in moments], 1)
            local = Moments(torch.cat([m.max_T for m in moments]), sums_KT, torch.cat(squares, 1) if squares else None)
        else:
            empty = torch.zeros(3, 0, dtype=statistics_dtype(hidden.dtype), device=hidden.device)
            local = Moments(empty[0], empty, empty[:2] if self.request.mean_lowering else None)
        threshold = Threshold(*(torch.cat(parts) for parts in zip(*thresholds, strict=True))) if thresholds else None
        return conclude(local, threshold, targets_T, self.rows.rows_T, self.rows.lead_shape, self.request)

    def _measure_chunk(self, hidden_TH: Tensor, weight: Tensor, targets_T: Tensor, thresholds: list[Threshold]) -> Moments:
        """One rank's moments of a chunk; the thresholds of its tiles are appended to `thresholds`."""
        request, tokens = self.request, len(hidden_TH)
        tiles = 1 if self.splits_tokens else max(1, -(-request.shard.columns // self.tile_shape(hidden_TH).columns))
        dtype = statistics_dtype(hidden_TH.dtype)
        # Made at once: small tensors left behind tile by tile would lie where the tiles' buffers were, and these then go elsewhere.
        max_JT = torch.empty(tiles, tokens, dtype=dtype, device=hidden_TH.device)
        sums_JKT = torch.empty(tiles, 5 if request.selects else 3, tokens, dtype=dtype, device=hidden_TH.device)
        squares_J2T = torch.empty(tiles, 2, tokens, dtype=dtype, device=hidden_TH.device) if request.mean_lowering else None
        targets_JT = torch.empty(tiles, tokens, dtype=torch.int32, device=hidden_TH.device)
        for piece, tile in enumerate(self.tiles(hidden_TH, weight, targets_T)):
            index = 0 if self.splits_tokens else piece
            threshold = None
            if request.kept and request.selects:
                threshold = select_largest(tile.logits, request.kept, request.shard)
                thresholds.append(threshold)
            options = {"entropy": request.entropy, "squares": request.mean_lowering}
            moments = local_moments(tile.logits, tile.target_R, request.temperature, threshold, **options)
            max_JT[index, tile.rows], sums_JKT[index, :, tile.rows] = moments.max_T, moments.sums_KT
            if squares_J2T is not None and moments.squares_2T is not None:
                squares_J2T[index, :, tile.rows] = moments.squares_2T
            targets_JT[index, tile.rows] = tile.target_R
        pieces = [
            Moments(max_JT[index], sums_JKT[index], None if squares_J2T is None else squares_J2T[index]) for index in range(tiles)
        ]
        if self.splits_tokens:
            return pieces[0]
        return merge_moments(pieces, list(targets_JT), request.temperature)

    def gradients(
        self,
        hidden: Tensor,
        weight: Tensor,
        targets_T: Tensor,
        scalars: TokenScalars,
        threshold: Threshold | None,
        upstream: UpstreamGradients,
        wanted: tuple[bool, bool],
    ) -> tuple[Tensor | None, Tensor | None]:
        """Backward: the gradients of hidden and weight that are `wanted`; each tile's logits computed again, then overwritten."""
        if len(targets_T) == 0:
            return torch.zeros_like(hidden) if wanted[0] else None, torch.zeros_like(weight) if wanted[1] else None
        returned = HiddenGradient(self.rows, hidden) if wanted[0] else None
        of_weight = None
        if wanted[1]:
            buffer = main_grad(weight) if self.accumulate_main_grad else None
            overlap = self.splits_tokens or len(self.rows.chunks) > 1
            of_weight = ProductSum(weight, weight.shape, pieces_overlap=overlap, buffer=buffer)
        with torch.autocast(device_type=hidden.device.type, enabled=False):
            for chunk, hidden_TH in self.rows.each(hidden):
                of_hidden = None
                if returned is not None:
                    of_hidden = ProductSum(hidden_TH, hidden_TH.shape, pieces_overlap=not self.splits_tokens)
                cut = None if threshold is None else threshold.at(chunk.rows)
                given = (scalars.at(chunk.rows), cut, upstream.at(chunk.rows))
                for tile in self.tiles(hidden_TH, weight, targets_T[chunk.rows]):
                    grad_RC = self._differentiate(tile, *given)
                    if of_hidden is not None:
                        of_hidden.add(tile.rows, grad_RC, weight[tile.columns])
                    if of_weight is not None:
                        of_weight.add(tile.columns, grad_RC.T, hidden_TH[tile.rows])
                if returned is not None and of_hidden is not None:
                    returned.give(chunk, of_hidden.total())
        grad_hidden = None if returned is None else returned.total()
        if of_weight is None:
            return grad_hidden, None
        return grad_hidden, added_to_main_grad(weight) if self.accumulate_main_grad else of_weight.total()

    def _differentiate(self, tile: Tile, scalars: TokenScalars, threshold: Threshold | None, upstream: UpstreamGradients) -> Tensor:
        """The gradient of a tile's logits, in place; the other arguments are those of the tile's chunk."""
        write_logits_gradient(
            tile.logits,
            tile.target_R,
            self.request.temperature,
            scalars.at(tile.rows),
            None if threshold is None else threshold.at(tile.rows),
            upstream.at(tile.rows),
            tile.logits.logits,
        )
        grad_RC: Tensor = tile.logits.logits[:, : tile.logits.columns]
        return grad_RC
