"""Argument checks. Refused are arguments that do not fit together, rows that are not distributions, second derivatives.

Shapes: T unmasked tokens.
"""

import math
from enum import IntEnum
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_entropic.entropy.shard import VocabShard


class _Fault(IntEnum):
    """Reasons to refuse a row; when ranks differ about the same row, the lowest is reported."""

    NAN = 0
    POSITIVE_INFINITY = 1
    ALL_NEGATIVE_INFINITY = 2
    TARGET = 3


_REASONS = {
    _Fault.NAN: "a logit is NaN",
    _Fault.POSITIVE_INFINITY: "a logit is +inf",
    _Fault.ALL_NEGATIVE_INFINITY: "every logit is -inf, so no token can be sampled",
    _Fault.TARGET: "the target is not a token id",
}


def check_arguments(
    lead_shape: torch.Size, targets: Tensor, mask: Tensor | None, shard: VocabShard, temperature: float, clamp: float | None
) -> None:
    """Raises ValueError or TypeError, naming the argument, when the call makes no sense whatever the values are."""
    if targets.shape != lead_shape:
        raise ValueError(f"targets has shape {tuple(targets.shape)}; expected one target per row, {tuple(lead_shape)}")
    if targets.dtype != torch.int64:
        raise TypeError(f"targets must be int64 global token ids, not {targets.dtype}")
    if mask is not None and mask.shape != lead_shape:
        raise ValueError(f"mask has shape {tuple(mask.shape)}; expected {tuple(lead_shape)}, as targets")
    if mask is not None and mask.dtype != torch.bool:
        raise TypeError(f"mask must be bool, not {mask.dtype}")
    if not 1 <= shard.vocab_size <= shard.width * shard.ranks:
        raise ValueError(
            f"vocab_size={shard.vocab_size} must be between 1 and the columns there are: {shard.width} on each of {shard.ranks} ranks"
        )
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature={temperature} must be finite and above 0")
    if clamp is not None and not 0 <= clamp < 1:
        raise ValueError(f"clamp={clamp} must be in [0, 1): the fraction of the vocabulary left out")


def check_rows(
    local_max_T: Tensor, max_T: Tensor, targets_T: Tensor, rows_T: Tensor | None, lead_shape: torch.Size, shard: VocabShard
) -> None:
    """Raises the same ValueError, naming the first bad row, on every tensor rank; one all-reduce of one int64.

    A row's maximum tells all there is to know about its logits: a NaN makes it NaN, +inf makes it +inf, and only -inf
    leaves it at -inf. Costs one copy of a number to the host.
    """
    clean = len(_Fault)
    fault_T = torch.full_like(targets_T, clean)
    fault_T[(targets_T < 0) | (targets_T >= shard.vocab_size)] = _Fault.TARGET
    fault_T[max_T == -torch.inf] = _Fault.ALL_NEGATIVE_INFINITY
    fault_T[local_max_T == torch.inf] = _Fault.POSITIVE_INFINITY
    fault_T[local_max_T.isnan()] = _Fault.NAN
    row_T = torch.arange(fault_T.numel(), device=fault_T.device) if rows_T is None else rows_T
    none = torch.iinfo(torch.int64).max
    first = torch.where(fault_T < clean, row_T * clean + fault_T, none).min().reshape(1)
    code = int(shard.all_reduce(first, dist.ReduceOp.MIN).item())
    if code == none:
        return
    row, fault = divmod(code, clean)
    position = row if rows_T is None else int((rows_T == row).nonzero())
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(row), lead_shape))
    detail = f" (target {int(targets_T[position])}, vocabulary {shard.vocab_size})" if fault == _Fault.TARGET else ""
    raise ValueError(f"row {row} (index {index} of {tuple(lead_shape)}): {_REASONS[_Fault(fault)]}{detail}")


def refuse_second_derivative(grad: Tensor | None, source: Tensor) -> Tensor | None:
    """`grad`, which raises RuntimeError when differentiated; `source` is the tensor it is the gradient of.

    torch's once_differentiable would let a gradient taken with create_graph=True pass for a constant when the loss's own
    gradient is one.
    """
    if grad is None or not torch.is_grad_enabled():
        return grad
    refused: Tensor = _SecondDerivative.apply(grad, source)  # type: ignore[no-untyped-call]
    return refused


class _SecondDerivative(torch.autograd.Function):
    """Passes `grad` on; depends on `source` so that differentiating again comes by here."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, source: Tensor) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        raise RuntimeError(
            "token statistics can be differentiated once only: their gradient was taken with create_graph=True and is now "
            "differentiated again; compute a term that needs second derivatives from torch.log_softmax"
        )
