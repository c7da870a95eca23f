"""Token statistics of hidden states and the output layer's weight: the logits exist for one chunk of tokens at a time.

Shapes: N rows of the whole sequence, T rows inside the mask, C rows of a chunk, H hidden size, V this rank's real columns.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_entropic.entropy.checks import check_arguments, refuse_second_derivative
from megatron_entropic.entropy.row_math import Moments, TokenScalars, UpstreamGradients, local_moments, write_logits_gradient
from megatron_entropic.entropy.selection import Threshold, select_largest
from megatron_entropic.entropy.shard import ShardRows, VocabShard, statistics_dtype
from megatron_entropic.entropy.token_statistics import (
    Measured,
    Request,
    TokenStatistics,
    conclude,
    gather_upstream,
    kept_count,
    rows_inside,
)

CHUNK_BYTES = 256 * 2**20
"""Default chunk: as many tokens as have this much float32 logits on one rank."""


def linear_token_statistics(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    tp_group: dist.ProcessGroup | None = None,
    vocab_size: int,
    temperature: float = 1.0,
    clamp: float | None = None,
    mask: Tensor | None = None,
    sequence_parallel: bool = False,
    chunk_tokens: int | None = None,
    validate: bool = True,
) -> TokenStatistics:
    """`token_statistics(hidden @ weight.T, targets, ...)` without ever holding the logits of more than a chunk of tokens.

    Args:
        hidden: [..., H]; equal on all ranks, or with `sequence_parallel` this rank's contiguous slice of dimension 0 of it.
        weight: [V_local, H], of hidden's dtype: this rank's rows of the output layer (or of a tied embedding).
        targets, mask: as in `token_statistics`, [...] of the *whole* sequence.
        sequence_parallel: hidden is sharded along dimension 0 over tp_group.
        chunk_tokens: tokens whose logits exist at a time; default: as many as fill CHUNK_BYTES in float32.
        tp_group, vocab_size, temperature, clamp, validate: as in `token_statistics`.

    Returns:
        TokenStatistics of the whole sequence on every rank, differentiable in hidden and weight. Each rank's gradient of
        hidden is complete (summed over tp_group), and of its own slice under sequence parallelism.

    The matrix products run in hidden's dtype, autocast or not; the chunks' weight gradients add up in float32, and come back
    in weight's dtype.

    Collectives over tp_group: forward those of `token_statistics`, the selection's (0 < clamp) once per chunk; backward one
    all-reduce [T, H] of hidden's gradient. With sequence parallelism an all-gather of hidden in forward and (for the weight's
    sake) in backward, and a reduce-scatter in place of the all-reduce. No row inside the mask: none at all.

    Saved for backward: hidden and weight as given, and a few scalars a token. Backward computes each chunk's logits again.

    Raises:
        ValueError, TypeError: as `token_statistics`, and for shapes or dtypes of hidden and weight that do not fit.
    """
    if weight.dim() != 2 or hidden.shape[-1] != weight.shape[1] or hidden.dtype != weight.dtype:
        raise ValueError(
            f"hidden {tuple(hidden.shape)} {hidden.dtype} and weight {tuple(weight.shape)} {weight.dtype} must be [..., H] and "
            "[V_local, H] of one dtype"
        )
    if chunk_tokens is not None and chunk_tokens < 1:
        raise ValueError(f"chunk_tokens={chunk_tokens} must be at least 1")
    shard = VocabShard.of(weight.shape[0], vocab_size, tp_group)
    sequence_parallel = sequence_parallel and shard.ranks > 1
    if sequence_parallel and hidden.dim() < 2:
        raise ValueError("hidden needs a sequence dimension before H when sequence_parallel is set")
    lead_shape = hidden.shape[:-1]
    if sequence_parallel:
        lead_shape = torch.Size((shard.ranks * lead_shape[0], *lead_shape[1:]))
    check_arguments(lead_shape, targets, mask, shard, temperature, clamp)
    request = Request(shard, temperature, kept_count(vocab_size, clamp), validate)
    chunk = chunk_tokens or max(1, CHUNK_BYTES // (4 * weight.shape[0]))
    head = _Head(request, lead_shape, sequence_parallel, chunk)
    rows_T = rows_inside(mask)
    targets_T = targets.reshape(-1) if rows_T is None else targets.reshape(-1)[rows_T]
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        return TokenStatistics(*_LinearTokenStatistics.apply(hidden, weight, targets_T, rows_T, head))  # type: ignore[no-untyped-call]
    return head.measure(hidden, weight, targets_T, rows_T).spread(rows_T, lead_shape)


@dataclass(frozen=True)
class _Head:
    """The computation, chunk by chunk. `lead_shape` is that of the whole sequence."""

    request: Request
    lead_shape: torch.Size
    sequence_parallel: bool
    chunk_tokens: int

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

    def chunks(self, hidden_TH: Tensor, weight: Tensor) -> Iterator[tuple[slice, Tensor, ShardRows]]:
        """(positions among the T rows, hidden_CH, the chunk's logits); the same bits each time."""
        columns = self.request.shard.columns
        for start in range(0, len(hidden_TH), self.chunk_tokens):
            chunk = slice(start, min(start + self.chunk_tokens, len(hidden_TH)))
            hidden_CH = hidden_TH[chunk]
            yield chunk, hidden_CH, ShardRows(hidden_CH @ weight[:columns].T, None, columns)

    def measure(self, hidden: Tensor, weight: Tensor, targets_T: Tensor, rows_T: Tensor | None) -> Measured:
        """Forward: one rank's moments of every chunk, then the ranks' in one go."""
        request, shard = self.request, self.request.shard
        column_T = shard.local_columns(targets_T)
        moments: list[Moments] = []
        thresholds: list[Threshold] = []
        # autocast would give these logits another dtype than the backward pass, which runs outside it
        with torch.autocast(device_type=hidden.device.type, enabled=False):
            hidden_TH = self.gather_rows(hidden, rows_T) if len(targets_T) > 0 else hidden.new_empty(0, hidden.shape[-1])
            for chunk, _, rows in self.chunks(hidden_TH, weight):
                threshold = None
                if request.kept and request.selects:
                    threshold = select_largest(rows, request.kept, shard)
                    thresholds.append(threshold)
                moments.append(local_moments(rows, column_T[chunk], request.temperature, threshold))
        local = _join_moments(moments, hidden)
        threshold = Threshold(*(torch.cat(parts) for parts in zip(*thresholds, strict=True))) if thresholds else None
        return conclude(local, threshold, targets_T, rows_T, self.lead_shape, request)

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
        """Backward: the gradients of hidden and weight that are `wanted`, from each chunk's logits computed again."""
        if len(targets_T) == 0:
            return torch.zeros_like(hidden) if wanted[0] else None, torch.zeros_like(weight) if wanted[1] else None
        shard = self.request.shard
        column_T = shard.local_columns(targets_T)
        with torch.autocast(device_type=hidden.device.type, enabled=False):
            hidden_TH = self.gather_rows(hidden, rows_T)
            grad_TH = torch.empty_like(hidden_TH, memory_format=torch.contiguous_format) if wanted[0] else None
            grad_weight = weight.new_zeros(weight.shape, dtype=statistics_dtype(weight.dtype)) if wanted[1] else None
            for chunk, hidden_CH, rows in self.chunks(hidden_TH, weight):
                grad_CV = torch.empty_like(rows.logits)
                cut = None if threshold is None else threshold.at(chunk)
                write_logits_gradient(
                    rows, column_T[chunk], self.request.temperature, scalars.at(chunk), cut, upstream.at(chunk), grad_CV
                )
                if grad_TH is not None:
                    grad_TH[chunk] = grad_CV @ weight[: shard.columns]
                if grad_weight is not None:
                    grad_weight[: shard.columns] += grad_CV.T @ hidden_CH
            grad_hidden = None if grad_TH is None else self.return_rows(grad_TH, rows_T)
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype)


def _join_moments(moments: list[Moments], like: Tensor) -> Moments:
    if not moments:
        empty = torch.zeros(3, 0, dtype=statistics_dtype(like.dtype), device=like.device)
        return Moments(empty[0], empty)
    return Moments(torch.cat([m.max_T for m in moments]), torch.cat([m.sums_KT for m in moments], 1))


class _LinearTokenStatistics(torch.autograd.Function):
    """Keeps hidden and weight as given and per-token scalars; see `linear_token_statistics`."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets_T: Tensor, rows_T: Tensor | None, head: _Head) -> TokenStatistics:
        measured = head.measure(hidden, weight, targets_T, rows_T)
        ctx.save_for_backward(hidden, weight, targets_T, rows_T, *measured.tensors())
        ctx.set_materialize_grads(False)
        ctx.head = head
        return measured.spread(rows_T, head.lead_shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        hidden, weight, targets_T, rows_T, *saved = ctx.saved_tensors
        head: _Head = ctx.head
        scalars, threshold = Measured.restored(tuple(saved))
        upstream = gather_upstream(grads, rows_T, scalars, head.request)
        with torch.no_grad():
            grad_hidden, grad_weight = head.gradients(
                hidden, weight, targets_T, rows_T, scalars, threshold, upstream, ctx.needs_input_grad[:2]
            )
        source = hidden if hidden.requires_grad else weight
        return refuse_second_derivative(grad_hidden, source), refuse_second_derivative(grad_weight, source), None, None, None
