"""log-prob, entropy and clamped entropy of each token from vocabulary-sharded logits, as one differentiable operation.

Shapes: T unmasked tokens, N all rows, V vocabulary columns of this rank.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_entropic.entropy.checks import check_arguments, check_rows, refuse_second_derivative
from megatron_entropic.entropy.device_path import runs_kernels
from megatron_entropic.entropy.moments import combine_moments, finish, mean_lowering
from megatron_entropic.entropy.records import Moments, Threshold, TokenScalars, UpstreamGradients
from megatron_entropic.entropy.row_math import local_moments, write_logits_gradient
from megatron_entropic.entropy.selection import select_largest
from megatron_entropic.entropy.shard import ShardRows, VocabShard


class TokenStatistics(NamedTuple):
    """Statistics of each token in nats; float32 (float64 for float64 logits), equal on all tensor ranks, 0 outside the mask.

    Attributes:
        log_prob: [...] log-probability of the target.
        entropy: [...] entropy of the distribution over the whole vocabulary.
        clamped_entropy: [...] entropy of the distribution re-normalised over the K largest logits; None without a clamp.
        mean_lowering: [...] E_{v~p}[p_v (log p_v + H)] = sum p_v^2 (log p_v + H): by how much, in the policy's mean, raising a
            token's logit by 1 lowers H to first order. Has no gradient. None unless asked for.
    """

    log_prob: Tensor
    entropy: Tensor
    clamped_entropy: Tensor | None
    mean_lowering: Tensor | None = None


def token_statistics(
    logits: Tensor,
    targets: Tensor,
    *,
    tp_group: dist.ProcessGroup | None = None,
    vocab_size: int,
    temperature: float = 1.0,
    clamp: float | None = None,
    mask: Tensor | None = None,
    mean_lowering: bool = False,
    validate: bool = True,
) -> TokenStatistics:
    """Token statistics of softmax(logits / temperature) over the true vocabulary V.

    Entropy H = -sum p log p and its clamped form (AEnt, arXiv 2509.03493): the same over the K = V - floor(clamp V) largest
    logits, counted over all tensor ranks; among equal logits the lowest token ids are kept; membership has no gradient.

    Args:
        logits: [..., V_local] float32, bfloat16, float16 or float64, any layout; this rank's columns of a vocabulary padded
            to equal contiguous shards in rank order. Columns with a global id >= vocab_size enter nothing. -inf is legal:
            probability 0, no part in the entropies or their gradients.
        targets: [...] int64 global token ids; the same on all ranks. Ids outside the mask are not looked at.
        tp_group: tensor-parallel group; None when the logits are not sharded.
        vocab_size: V.
        temperature: the sampling temperature, > 0.
        clamp: fraction of the vocabulary left out, in [0, 1); None leaves the clamped entropy out.
        mask: [...] bool, the same on all ranks; None is all rows. Rows outside it are 0, have no gradient and cost nothing.
        mean_lowering: give TokenStatistics.mean_lowering too: two more sums in the same pass and in the same all-reduce.
        validate: check every unmasked token; costs one all-reduce of one number, and the wait for it. Without it the
            statistics of a bad row are NaN.

    Returns:
        TokenStatistics. A target whose logit is -inf has log_prob -inf; its gradient is still 1[i = target] - p_i.

    Collectives over tp_group (T unmasked tokens): forward 2 all-reduces [T] and [3, T] (2 rows more with a clamp, and 2 with
    mean_lowering); with 0 < clamp, one all-reduce [T, 256] int32 per byte of the logits' dtype and one all-gather [T] int32
    besides. Backward none. No unmasked token: none at all.

    Saved for backward: the logits as given, and a few scalars a token. Nothing when no gradient is needed. The gradient has
    the logits' dtype; it cannot be differentiated again.

    Raises:
        ValueError, TypeError: arguments that do not fit together.
        ValueError: (validate) a logit is NaN or +inf, all of a row are -inf, or a target is no token id; names the first
            such row, on every rank.
    """
    shard = VocabShard.of(logits.shape[-1], vocab_size, tp_group)
    check_arguments(logits.shape[:-1], targets, mask, shard, temperature, clamp)
    request = Request(shard, temperature, kept_count(vocab_size, clamp), validate, mean_lowering=mean_lowering)
    return _statistics(logits, targets, mask, request)


def token_log_probs(
    logits: Tensor,
    targets: Tensor,
    *,
    tp_group: dist.ProcessGroup | None = None,
    vocab_size: int,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    validate: bool = True,
) -> Tensor:
    """`token_statistics(...).log_prob`, to the last bit, and nothing else: for passes that have no use for the entropy.

    The arguments, collectives, errors and what is saved are those of `token_statistics` without a clamp; about a third less
    work on the logits in forward and in backward.
    """
    shard = VocabShard.of(logits.shape[-1], vocab_size, tp_group)
    check_arguments(logits.shape[:-1], targets, mask, shard, temperature, None)
    return _statistics(logits, targets, mask, Request(shard, temperature, None, validate, entropy=False)).log_prob


def _statistics(logits: Tensor, targets: Tensor, mask: Tensor | None, request: "Request") -> TokenStatistics:
    rows_T = rows_inside(mask)
    targets_T = targets.reshape(-1) if rows_T is None else targets.reshape(-1)[rows_T]
    if torch.is_grad_enabled() and logits.requires_grad:
        return TokenStatistics(*_TokenStatisticsFunction.apply(logits, targets_T, rows_T, request))  # type: ignore[no-untyped-call]
    return _measure(logits, targets_T, rows_T, request).spread(rows_T, logits.shape[:-1])


@dataclass(frozen=True)
class Request:
    """Requested statistics. `kept`: K of the clamped entropy; None without a clamp. Without `entropy` only the log-prob is right."""

    shard: VocabShard
    temperature: float
    kept: int | None
    validate: bool
    entropy: bool = True
    mean_lowering: bool = False

    @property
    def selects(self) -> bool:
        """Whether the clamp leaves any token out: if not, the clamped entropy is the entropy."""
        return self.kept is not None and self.kept < self.shard.vocab_size


def kept_count(vocab_size: int, clamp: float | None) -> int | None:
    """K = V - floor(clamp V), at least 1 (clamp V may round up to V)."""
    return None if clamp is None else max(1, vocab_size - math.floor(clamp * vocab_size))


def rows_inside(mask: Tensor | None) -> Tensor | None:
    """Flat indices [T] of the unmasked tokens; None when that is all of them."""
    if mask is None:
        return None
    rows_T = mask.reshape(-1).nonzero().squeeze(1)
    return None if rows_T.numel() == mask.numel() else rows_T


@dataclass(frozen=True)
class Measured:
    """Results of the unmasked tokens, and what the backward pass needs."""

    log_prob_T: Tensor
    mean_lowering_T: Tensor | None
    scalars: TokenScalars
    threshold: Threshold | None
    request: Request

    def spread(self, rows_T: Tensor | None, lead_shape: torch.Size) -> TokenStatistics:
        """The results in the caller's shape, 0 outside the mask."""
        clamped_T = self.scalars.entropy_T if self.scalars.kept_entropy_T is None else self.scalars.kept_entropy_T

        def full(x_T: Tensor) -> Tensor:
            if rows_T is None:
                return x_T.reshape(lead_shape).clone()  # the caller may change the results, not the saved scalars
            out = x_T.new_zeros(lead_shape)
            out.view(-1).index_copy_(0, rows_T, x_T)
            return out

        clamped = None if self.request.kept is None else full(clamped_T)
        lowering = None if self.mean_lowering_T is None else full(self.mean_lowering_T)
        return TokenStatistics(full(self.log_prob_T), full(self.scalars.entropy_T), clamped, lowering)

    def tensors(self) -> tuple[Tensor | None, ...]:
        """The per-token tensors to save for backward, in the order `restored` takes them."""
        return (*self.scalars, *(self.threshold or (None, None)))

    @staticmethod
    def restored(tensors: tuple[Any, ...]) -> tuple[TokenScalars, Threshold | None]:
        threshold = None if tensors[5] is None else Threshold(tensors[5], tensors[6])
        return TokenScalars(*tensors[:5]), threshold


def conclude(
    local: Moments, threshold: Threshold | None, targets_T: Tensor, rows_T: Tensor | None, lead_shape: torch.Size, request: Request
) -> Measured:
    """From one rank's moments to the results: all-reduces [T] and [3 to 7, T], and one of a single number to validate."""
    shard = request.shard
    column_T = shard.local_columns(targets_T)
    max_T, moments = local.max_T.clone(), local
    if len(targets_T) > 0:
        shard.all_reduce(max_T, dist.ReduceOp.MAX)
        if request.validate:
            check_rows(local.max_T, max_T, targets_T, rows_T, lead_shape, shard)
        moments = combine_moments(local, max_T, column_T, request.temperature, shard)
    log_prob_T, scalars = finish(moments)
    is_token_T = (targets_T >= 0) & (targets_T < shard.vocab_size)
    return Measured(torch.where(is_token_T, log_prob_T, torch.nan), mean_lowering(moments), scalars, threshold, request)


def gather_upstream(
    grads: tuple[Tensor | None, ...], rows_T: Tensor | None, scalars: TokenScalars, request: Request
) -> UpstreamGradients:
    """The gradients of the three results that have one at the unmasked tokens, in the statistics' dtype."""
    flat = [None if g is None else g.reshape(-1).to(scalars.max_T.dtype) for g in grads[:3]]
    log_prob_T, entropy_T, kept_T = (g if g is None or rows_T is None else g[rows_T] for g in flat)
    if request.selects or kept_T is None:
        return UpstreamGradients(log_prob_T, entropy_T, kept_T)
    return UpstreamGradients(log_prob_T, kept_T if entropy_T is None else entropy_T + kept_T, None)


def without_gradient(ctx: Any, statistics: TokenStatistics) -> TokenStatistics:
    """`statistics`, and autograd told which of them it is not to differentiate."""
    if statistics.mean_lowering is not None:
        ctx.mark_non_differentiable(statistics.mean_lowering)
    return statistics


def _measure(logits: Tensor, targets_T: Tensor, rows_T: Tensor | None, request: Request) -> Measured:
    shard = request.shard
    rows = ShardRows(logits, rows_T, shard.columns)
    threshold = select_largest(rows, request.kept, shard) if request.kept and request.selects and len(rows) > 0 else None
    column_T = shard.local_columns(targets_T)
    options = {"entropy": request.entropy, "squares": request.mean_lowering}
    local = local_moments(rows, column_T, request.temperature, threshold, **options)
    return conclude(local, threshold, targets_T, rows_T, logits.shape[:-1], request)


class _TokenStatisticsFunction(torch.autograd.Function):
    """Keeps the logits as given and per-token scalars; see `token_statistics`."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets_T: Tensor, rows_T: Tensor | None, request: Request) -> TokenStatistics:
        measured = _measure(logits, targets_T, rows_T, request)
        ctx.save_for_backward(logits, targets_T, rows_T, *measured.tensors())
        ctx.set_materialize_grads(False)
        ctx.request = request
        return without_gradient(ctx, measured.spread(rows_T, logits.shape[:-1]))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        logits, targets_T, rows_T, *saved = ctx.saved_tensors
        with torch.no_grad():
            grad = _logits_gradient(logits, targets_T, rows_T, tuple(saved), grads, ctx.request)
        return refuse_second_derivative(grad, logits), None, None, None


def _logits_gradient(
    logits: Tensor,
    targets_T: Tensor,
    rows_T: Tensor | None,
    saved: tuple[Any, ...],
    grads: tuple[Tensor | None, ...],
    request: Request,
) -> Tensor:
    scalars, threshold = Measured.restored(saved)
    upstream = gather_upstream(grads, rows_T, scalars, request)
    rows = ShardRows(logits, rows_T, request.shard.columns)
    grad = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    grad_NV = grad.view(rows.rows_total, logits.shape[-1])
    if not runs_kernels(logits):  # they write these zeros in the same pass
        if rows_T is not None:
            grad_NV.zero_()
        grad_NV[:, rows.columns :].zero_()
    column_T = request.shard.local_columns(targets_T)
    write_logits_gradient(rows, column_T, request.temperature, scalars, threshold, upstream, grad_NV)
    return grad
