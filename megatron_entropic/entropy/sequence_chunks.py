"""The hidden states of the unmasked tokens: how they come from the tensor ranks, and how their gradient goes back.

Under sequence parallelism each rank holds a slice of the sequence. Long sequences are gathered in chunks, the next one while the
caller works on the present one; a chunk's gradient is reduced and scattered while the caller works on the next. Chunk c is slice c
of *every* rank's slice, so each rank sends and receives contiguous memory; the T rows are in the order that makes a chunk's rows
neighbours, and HiddenRows.rows_T says where in the sequence they belong.

Shapes: N rows of the whole sequence, T unmasked tokens (of a chunk, where one is at hand), H hidden size; before
the mask W tensor ranks, L their slices of the sequence, B sequences.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_entropic.entropy.shard import Pending, VocabShard
from megatron_entropic.entropy.token_statistics import rows_inside

CHUNK_TOKENS = 4096
"""Tokens, of all ranks together, of a chunk at least; fewer than two chunks of them are gathered as a whole. The weight is read and its
gradient added to once a chunk, which so many make short beside the products. Over gloo on one machine there is nothing to gain:
an all-gather is 0.3% of the time, and two chunks took 1% longer than one, four 6% (2048 tokens, H = 1024, V = 19,200, float32)."""


class Chunk(NamedTuple):
    """`own`: dimension 0 of each rank's hidden; `rows`: which of the T unmasked tokens, never none."""

    own: slice
    rows: slice


@dataclass(frozen=True)
class HiddenRows:
    """Layout of the rows; the same on all ranks but for the hidden states themselves.

    Attributes:
        lead_shape: shape of the whole sequence's tokens.
        sharded: hidden is this rank's slice of dimension 0, one of more than one.
        rows_T: flat index in the sequence of each unmasked token, chunk by chunk; None when they are all rows in order.
    """

    shard: VocabShard
    lead_shape: torch.Size
    sharded: bool
    rows_T: Tensor | None
    chunks: tuple[Chunk, ...]

    @classmethod
    def of(cls, shard: VocabShard, targets: Tensor, mask: Tensor | None, *, sharded: bool, chunked: bool) -> "HiddenRows":
        """`targets`: of the whole sequence. All rows are one chunk, unless `chunked` and there are enough for several."""
        lead_shape, tokens = targets.shape, targets.numel()
        length = lead_shape[0] // shard.ranks if sharded else 0
        count = min(tokens // CHUNK_TOKENS, length) if sharded and chunked else 1
        if count <= 1:
            rows_T = rows_inside(mask)
            tokens = tokens if rows_T is None else rows_T.numel()
            return cls(shard, lead_shape, sharded, rows_T, (Chunk(slice(0, length), slice(0, tokens)),) if tokens else ())
        index_WLB = torch.arange(tokens, device=targets.device).view(shard.ranks, length, -1)
        pieces, chunks, end = [], [], 0
        for number in range(count):
            own = slice(length * number // count, length * (number + 1) // count)
            piece_T = index_WLB[:, own].reshape(-1)
            pieces.append(piece_T if mask is None else piece_T[mask.reshape(-1)[piece_T]])
            if pieces[-1].numel():
                chunks.append(Chunk(own, slice(end, end + pieces[-1].numel())))
                end = chunks[-1].rows.stop
        return cls(shard, lead_shape, sharded, torch.cat(pieces), tuple(chunks))

    def take(self, values: Tensor) -> Tensor:
        """[T] of the unmasked tokens, from one value a token of the sequence."""
        return values.reshape(-1) if self.rows_T is None else values.reshape(-1)[self.rows_T]

    def each(self, hidden: Tensor) -> Iterator[tuple[Chunk, Tensor]]:
        """(chunk, its rows hidden_TH) for each chunk; one all-gather a chunk if sharded, the next one's under way meanwhile."""
        coming: Pending | None = None
        for number, chunk in enumerate(self.chunks):
            present = coming or self._start_gather(hidden, chunk)
            rows = present.wait()
            following = self.chunks[number + 1 : number + 2]
            coming = self._start_gather(hidden, following[0]) if following else None
            rows_NH = rows.reshape(-1, hidden.shape[-1])
            positions_T = self.positions(chunk)
            yield chunk, rows_NH if positions_T is None else rows_NH[positions_T]

    def _start_gather(self, hidden: Tensor, chunk: Chunk) -> Pending:
        return self.shard.start_all_gather(hidden[chunk.own]) if self.sharded else Pending(hidden)

    def positions(self, chunk: Chunk) -> Tensor | None:
        """Indices of a chunk's T rows among the rows gathered for it; None when they are all of them, in order."""
        if self.rows_T is None or not self.sharded:
            return self.rows_T
        batch = self.lead_shape[1:].numel()
        per_rank, of_chunk = self.lead_shape[0] // self.shard.ranks * batch, (chunk.own.stop - chunk.own.start) * batch
        rows_T = self.rows_T[chunk.rows]
        if rows_T.numel() == of_chunk * self.shard.ranks:
            return None
        positions_T: Tensor = rows_T // per_rank * of_chunk + rows_T % per_rank - chunk.own.start * batch
        return positions_T


class HiddenGradient:
    """Hidden's gradient, put together from the chunks' in the order of `HiddenRows.chunks`.

    One all-reduce [T, H]; if sharded one reduce-scatter a chunk, under way until the next chunk is given.
    """

    def __init__(self, rows: HiddenRows, like: Tensor) -> None:
        self._rows, self._shape = rows, like.shape
        self._grad = like.new_empty(like.shape if rows.sharded else 0)
        if rows.sharded and sum(chunk.own.stop - chunk.own.start for chunk in rows.chunks) < len(like):
            self._grad.zero_()  # chunks without an unmasked token are not there
        self._leaving: Pending | None = None

    def give(self, chunk: Chunk, grad_TH: Tensor) -> None:
        """`grad_TH`: this rank's part of the gradient of the chunk's rows; is written to."""
        rows = self._rows
        if not rows.sharded:
            rows.shard.all_reduce(grad_TH, dist.ReduceOp.SUM)
            self._grad = _spread(grad_TH, rows.positions(chunk), rows.lead_shape.numel()).view(self._shape)
            return
        own = self._grad[chunk.own]
        whole_NH = _spread(grad_TH, rows.positions(chunk), own.shape[:-1].numel() * rows.shard.ranks)
        self.total()
        self._leaving = rows.shard.start_reduce_scatter(whole_NH.view(-1, *own.shape[1:]), own)

    def total(self) -> Tensor:
        """The gradient in the shape of this rank's hidden, complete for all chunks given."""
        if self._leaving is not None:
            self._leaving.wait()
            self._leaving = None
        return self._grad


def _spread(rows_TH: Tensor, positions_T: Tensor | None, count: int) -> Tensor:
    """[count, H] with the rows at their positions and 0 elsewhere."""
    if positions_T is None:
        return rows_TH
    return rows_TH.new_zeros(count, rows_TH.shape[1]).index_copy_(0, positions_T, rows_TH)
