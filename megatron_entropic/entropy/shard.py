"""Vocabulary shard of one tensor rank: its contiguous vocabulary columns, the unmasked tokens, and its collectives.

Shapes: T unmasked tokens, B rows of a block, V this rank's real vocabulary columns, W tensor ranks.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

BLOCK_BYTES = 2**22
"""Rows are worked on in blocks whose float32 copy is about this large: the two to four buffers of a block then stay in a core's
caches while a dozen operations pass over them, so memory is read once, and each operation is long beside the cost of calling it
(1 MiB was half as fast on two cores, 8 MiB the same). A row is never split."""


@dataclass(frozen=True)
class VocabShard:
    """One rank's columns of a vocabulary split into equal contiguous shards in rank order.

    Attributes:
        group: the tensor-parallel group; None when the vocabulary is not sharded.
        rank, ranks: this rank's index in `group`, and its size.
        vocab_size: V, the true vocabulary; global columns from V on are padding and do not exist.
        width: columns each rank stores, padding included.
    """

    group: dist.ProcessGroup | None
    rank: int
    ranks: int
    vocab_size: int
    width: int

    @classmethod
    def of(cls, width: int, vocab_size: int, group: dist.ProcessGroup | None) -> "VocabShard":
        if group is None:
            return cls(None, 0, 1, vocab_size, width)
        return cls(group, dist.get_rank(group), dist.get_world_size(group), vocab_size, width)

    @property
    def first_id(self) -> int:
        """Global token id of column 0."""
        return self.rank * self.width

    @property
    def columns(self) -> int:
        """Columns that are real tokens; 0 on a rank that holds padding only."""
        return min(max(self.vocab_size - self.first_id, 0), self.width)

    def local_columns(self, ids_T: Tensor) -> Tensor:
        """This rank's column of each global id, -1 where another rank (or none) holds it."""
        columns_T = ids_T - self.first_id
        return torch.where((columns_T >= 0) & (columns_T < self.columns), columns_T, -1)

    def all_reduce(self, tensor: Tensor, op: dist.ReduceOp.RedOpType) -> Tensor:
        """Reduces contiguous `tensor` in place over the tensor ranks; one collective, none when not sharded."""
        if self.ranks > 1:
            dist.all_reduce(tensor, op=op, group=self.group)
        return tensor

    def all_gather(self, tensor: Tensor) -> Tensor:
        """[W * n, ...] of every rank's [n, ...] in rank order; one collective, none when not sharded."""
        return tensor if self.ranks == 1 else self.start_all_gather(tensor).wait()

    def start_all_gather(self, tensor: Tensor) -> "Pending":
        """`all_gather` among several ranks, under way while the caller does something else."""
        gathered = tensor.new_empty((self.ranks * tensor.shape[0], *tensor.shape[1:]))
        # torch 2.13 renamed the collective and warns on each use of the old name
        gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        source = tensor.contiguous()
        return Pending(gathered, source, gather(gathered, source, group=self.group, async_op=True))

    def start_reduce_scatter(self, tensor: Tensor, out: Tensor) -> "Pending":
        """This rank's slice [n, ...] of the sum over several ranks of [W * n, ...], into contiguous `out`; under way meanwhile."""
        scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
        source = tensor.contiguous()
        return Pending(out, source, scatter(out, source, group=self.group, async_op=True))


@dataclass(frozen=True)
class Pending:
    """The result of a collective that may be under way still: not to be looked at, nor `source` changed, before `wait`."""

    result: Tensor
    source: Tensor | None = None
    work: dist.Work | None = None

    def wait(self) -> Tensor:
        if self.work is not None:
            self.work.wait()
        return self.result


@dataclass(frozen=True)
class ShardRows:
    """The rows of `logits` of the unmasked tokens, cut to the real columns, read in blocks and never copied as a whole.

    Attributes:
        logits: [..., width], any layout.
        rows_T: int64 flat indices of the unmasked tokens; None means all of them.
        columns: real columns V; the rest is padding.
        block_bytes: in place of BLOCK_BYTES.
    """

    logits: Tensor
    rows_T: Tensor | None
    columns: int
    block_bytes: int | None = None

    def __len__(self) -> int:
        return self.rows_total if self.rows_T is None else self.rows_T.numel()

    @property
    def rows_total(self) -> int:
        """Rows inside and outside the mask."""
        return self.logits.shape[:-1].numel()

    @property
    def block_rows(self) -> int:
        """Rows of a block; the last one may have fewer."""
        return min(max(1, (self.block_bytes or BLOCK_BYTES) // (4 * max(self.columns, 1))), max(len(self), 1))

    def block_slices(self) -> list[slice]:
        """Positions of the blocks among the T rows."""
        step = self.block_rows
        return [slice(start, min(start + step, len(self))) for start in range(0, len(self), step)]

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """(positions among the T rows, raw_BV in the logits' dtype) for every block; raw_BV may be a view."""
        for block in self.block_slices():
            yield block, self.read(block)

    def buffers(self, count: int) -> list[Tensor]:
        """`count` times [B, V] in the statistics' dtype: what a block is worked on in, made once for all blocks."""
        dtype = statistics_dtype(self.logits.dtype)
        return [torch.empty(self.block_rows, self.columns, dtype=dtype, device=self.logits.device) for _ in range(count)]

    def destination(self, out_NV: Tensor, block: slice, otherwise_BV: Tensor) -> Tensor:
        """Buffer for a block's values: in `out_NV` itself if its rows and dtype allow, else in `otherwise_BV`."""
        if self.rows_T is None and out_NV.dtype == otherwise_BV.dtype:
            return out_NV[block, : self.columns]
        return otherwise_BV

    def write(self, out_NV: Tensor, block: slice, values_BV: Tensor) -> None:
        """Puts a block's values into its rows of contiguous `out_NV` [rows_total, width], cast to its dtype."""
        if self.rows_T is None:
            out_BV = out_NV[block, : self.columns]
            if out_BV.data_ptr() != values_BV.data_ptr():
                out_BV.copy_(values_BV)
        else:
            out_NV[:, : self.columns].index_copy_(0, self.rows_T[block], values_BV.to(out_NV.dtype))

    def read(self, block: slice) -> Tensor:
        """[B, V] of a block in the logits' dtype; may be a view."""
        if self.logits.dim() <= 2 or self.logits.is_contiguous():
            logits_NV = self.logits[None] if self.logits.dim() == 1 else self.logits.flatten(0, -2)
            raw_BV = logits_NV[block] if self.rows_T is None else logits_NV[self.rows_T[block]]
            return raw_BV[:, : self.columns]
        # flattening another layout would copy all of it: index the leading dimensions one by one instead
        if self.rows_T is None:
            rows_B = torch.arange(block.start, block.stop, device=self.logits.device)
        else:
            rows_B = self.rows_T[block]
        return self.logits[torch.unravel_index(rows_B, self.logits.shape[:-1])][:, : self.columns]


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32 for every logits dtype but float64, which stays (numerical gradient checks need it)."""
    return torch.float64 if dtype == torch.float64 else torch.float32
