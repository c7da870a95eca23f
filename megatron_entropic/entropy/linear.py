"""Token statistics of hidden states and the output layer's weight: the logits exist for one tile at a time.

Shapes: T unmasked tokens, H hidden size.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_entropic.entropy.checks import check_arguments, refuse_second_derivative
from megatron_entropic.entropy.gradient_accumulation import check_main_grad
from megatron_entropic.entropy.linear_head import Head
from megatron_entropic.entropy.sequence_chunks import HiddenRows
from megatron_entropic.entropy.shard import VocabShard, statistics_dtype
from megatron_entropic.entropy.token_statistics import (
    Measured,
    Request,
    TokenStatistics,
    gather_upstream,
    kept_count,
    without_gradient,
)


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
    mean_lowering: bool = False,
    sequence_parallel: bool = False,
    chunk_tokens: int | None = None,
    validate: bool = True,
    accumulate_main_grad: bool = False,
) -> TokenStatistics:
    """`token_statistics(hidden @ weight.T, targets, ...)` without ever holding more of the logits than a tile.

    Args:
        hidden: [..., H]; equal on all ranks, or with `sequence_parallel` this rank's contiguous slice of dimension 0 of it.
        weight: [V_local, H], of hidden's dtype: this rank's rows of the output layer (or of a tied embedding).
        targets, mask: as in `token_statistics`, [...] of the *whole* sequence.
        sequence_parallel: hidden is sharded along dimension 0 over tp_group.
        chunk_tokens: tokens whose logits, all of this rank's columns, exist at a time. Default: with 0 < clamp as many as fill a
            budget, else all tokens and so many columns. The budget is the device's (system/logits_tiles.py): on a CPU 256 MiB in
            float32, and 1/160 of the columns; on a GPU with 80 GB 1 GiB, and 256 MiB (8,192 columns of 16,384 tokens).
        accumulate_main_grad: Megatron's gradient accumulation fusion: backward adds weight's gradient to `weight.main_grad` (made
            by Megatron's DistributedDataParallel), sets `weight.grad_added_to_main_grad` and gives autograd a placeholder without
            memory of its own: zeros where `weight.zero_out_wgrad` says that an embedding adds its own gradient through autograd.
        tp_group, vocab_size, temperature, clamp, mean_lowering, validate: as in `token_statistics`.

    Returns:
        TokenStatistics of the whole sequence on every rank, differentiable in hidden and weight. Each rank's gradient of
        hidden is complete (summed over tp_group), and of its own slice under sequence parallelism.

    The matrix products run in hidden's dtype, autocast or not. Where several add up to a gradient they come in float32 and are
    added in float32 (in main_grad's dtype there), and the sum is rounded once, to hidden's or weight's dtype (main_grad: never).

    Collectives over tp_group: forward those of `token_statistics`, the selection's (0 < clamp) once per chunk_tokens; backward
    one all-reduce [T, H] of hidden's gradient. With sequence parallelism an all-gather of hidden in forward and (for the weight's
    sake) in backward, and a reduce-scatter in place of the all-reduce. From 8192 tokens on these are one for each of several
    chunks of the sequence, under way while the chunk before (all-gather) or after (reduce-scatter) is computed, and hidden is
    never whole; chunks without an unmasked token are left out. A half-precision weight's gradient without main_grad would
    need a float32 sum twice its size to be added up over chunks: then the sequence stays whole. No unmasked token: none
    at all.

    Saved for backward: hidden and weight as given, and a few scalars a token; nothing when no gradient is needed. Backward
    computes each tile's logits again, into the same memory, and turns them into their gradient there.

    Raises:
        ValueError, TypeError: as `token_statistics`, and for shapes or dtypes of hidden and weight that do not fit, or a weight
            without main_grad where it is asked for.
    """
    kept = kept_count(vocab_size, clamp)
    shard = VocabShard.of(weight.shape[0], vocab_size, tp_group)
    request = Request(shard, temperature, kept, validate, mean_lowering=mean_lowering)
    return _statistics(hidden, weight, targets, mask, request, clamp, sequence_parallel, chunk_tokens, accumulate_main_grad)


def linear_token_log_probs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    tp_group: dist.ProcessGroup | None = None,
    vocab_size: int,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    sequence_parallel: bool = False,
    chunk_tokens: int | None = None,
    validate: bool = True,
    accumulate_main_grad: bool = False,
) -> Tensor:
    """`linear_token_statistics(...).log_prob`, to the last bit, and nothing else: for passes that have no use for the entropy."""
    shard = VocabShard.of(weight.shape[0], vocab_size, tp_group)
    request = Request(shard, temperature, None, validate, entropy=False)
    return _statistics(hidden, weight, targets, mask, request, None, sequence_parallel, chunk_tokens, accumulate_main_grad).log_prob


def _statistics(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    mask: Tensor | None,
    request: Request,
    clamp: float | None,
    sequence_parallel: bool,
    chunk_tokens: int | None,
    accumulate_main_grad: bool,
) -> TokenStatistics:
    _check_operands(hidden, weight, chunk_tokens)
    shard = request.shard
    sequence_parallel = sequence_parallel and shard.ranks > 1
    if sequence_parallel and hidden.dim() < 2:
        raise ValueError("hidden needs a sequence dimension before H when sequence_parallel is set")
    lead_shape = hidden.shape[:-1]
    if sequence_parallel:
        lead_shape = torch.Size((shard.ranks * lead_shape[0], *lead_shape[1:]))
    check_arguments(lead_shape, targets, mask, shard, request.temperature, clamp)
    needs_grad = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    if accumulate_main_grad and needs_grad and weight.requires_grad:
        check_main_grad(weight)
    splits_tokens = chunk_tokens is not None or request.selects
    # a weight's gradient is added up over the sequence's chunks: in place, unless it needs a float32 sum of its own
    adds_for_free = accumulate_main_grad or splits_tokens or not needs_grad or weight.dtype == statistics_dtype(weight.dtype)
    rows = HiddenRows.of(shard, targets, mask, sharded=sequence_parallel, chunked=adds_for_free)
    head = Head(request, rows, chunk_tokens, accumulate_main_grad)
    targets_T = rows.take(targets)
    if needs_grad:
        return TokenStatistics(*_LinearTokenStatistics.apply(hidden, weight, targets_T, rows.rows_T, head))  # type: ignore[no-untyped-call]
    return head.measure(hidden, weight, targets_T).spread(rows.rows_T, lead_shape)


def _check_operands(hidden: Tensor, weight: Tensor, chunk_tokens: int | None) -> None:
    if weight.dim() != 2 or hidden.shape[-1] != weight.shape[1] or hidden.dtype != weight.dtype:
        raise ValueError(
            f"hidden {tuple(hidden.shape)} {hidden.dtype} and weight {tuple(weight.shape)} {weight.dtype} must be [..., H] and "
            "[V_local, H] of one dtype"
        )
    if chunk_tokens is not None and chunk_tokens < 1:
        raise ValueError(f"chunk_tokens={chunk_tokens} must be at least 1")


class _LinearTokenStatistics(torch.autograd.Function):
    """Keeps hidden and weight as given and per-token scalars; see `linear_token_statistics`."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets_T: Tensor, rows_T: Tensor | None, head: Head) -> TokenStatistics:
        measured = head.measure(hidden, weight, targets_T)
        ctx.save_for_backward(hidden, weight, targets_T, rows_T, *measured.tensors())
        ctx.set_materialize_grads(False)
        ctx.head = head
        ctx.parameter = weight if head.accumulate_main_grad else None  # the object with main_grad, whatever saving does to tensors
        return without_gradient(ctx, measured.spread(rows_T, head.rows.lead_shape))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        hidden, weight, targets_T, rows_T, *saved = ctx.saved_tensors
        weight = weight if ctx.parameter is None else ctx.parameter
        head: Head = ctx.head
        scalars, threshold = Measured.restored(tuple(saved))
        upstream = gather_upstream(grads, rows_T, scalars, head.request)
        with torch.no_grad():
            grad_hidden, grad_weight = head.gradients(hidden, weight, targets_T, scalars, threshold, upstream, ctx.needs_input_grad[:2])
        source = hidden if hidden.requires_grad else weight
        return refuse_second_derivative(grad_hidden, source), refuse_second_derivative(grad_weight, source), None, None, None
