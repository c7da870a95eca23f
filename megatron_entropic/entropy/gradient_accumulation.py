"""Sums of matrix products that make up a gradient, each piece rounded as little and moved as rarely as can be.

Shapes: I inner size of a product, H hidden size.
"""

import torch
from torch import Tensor

from megatron_entropic.entropy.device_path import adds_into_float32, multiplies_into_float32
from megatron_entropic.entropy.shard import statistics_dtype

BLOCK_ROWS, BLOCK_INNER = 256, 128
"""Where no product of half-precision matrices comes in float32, so much of them is made float32 at a time: small beside the operands,
and large enough for the products to lose no speed."""
PIECE_BYTES = 64 * 2**20
"""Where they come in float32, but cannot be added to a matrix in the same pass, so much of a product exists at a time."""


class ProductSum:
    """A gradient [rows, H] of which products [r, I] @ [I, H] fill or add to some rows at a time.

    Args:
        like: the tensor whose gradient it is; decides dtype and device.
        pieces_overlap: several products go to the same rows, and are then added up in float32; else each row gets one.
        buffer: add to this tensor, in its dtype, instead of making one.
    """

    def __init__(self, like: Tensor, shape: torch.Size, *, pieces_overlap: bool, buffer: Tensor | None = None) -> None:
        self._dtype = like.dtype
        self._adds = pieces_overlap or buffer is not None
        if buffer is not None:
            self._sum = buffer
        elif pieces_overlap:
            self._sum = torch.zeros(shape, dtype=statistics_dtype(like.dtype), device=like.device)
        else:
            self._sum = torch.empty(shape, dtype=like.dtype, device=like.device)
        self._filled = 0

    def add(self, rows: slice, left: Tensor, right: Tensor) -> None:
        self._filled = max(self._filled, rows.stop)
        if not self._adds:
            torch.mm(left, right, out=self._sum[rows])
        else:
            _add_product(self._sum[rows], left, right)

    def total(self) -> Tensor:
        """The gradient in its own dtype; rows behind the last one that was given are 0."""
        if not self._adds:
            self._sum[self._filled :].zero_()
        return self._sum.to(self._dtype)


def _add_product(out: Tensor, left: Tensor, right: Tensor) -> None:
    """out += left @ right, the product rounded to no less than out's dtype.

    A half-precision product that is to be added up in float32 would otherwise be rounded to half precision first.
    """
    if out.dtype == left.dtype:
        out.addmm_(left, right)
    elif adds_into_float32(left):  # reads and writes `out` once, and holds nothing beside it
        torch.addmm(out, left, right, out_dtype=out.dtype, out=out)
    elif multiplies_into_float32(left):
        step = max(1, PIECE_BYTES // (out.element_size() * out.shape[1]))
        for top in range(0, len(out), step):
            rows = slice(top, top + step)
            out[rows].add_(torch.mm(left[rows], right, out_dtype=out.dtype))
    else:
        for inner in range(0, left.shape[1], BLOCK_INNER):
            inside = slice(inner, inner + BLOCK_INNER)
            right_IH = right[inside].to(out.dtype)
            for top in range(0, left.shape[0], BLOCK_ROWS):
                rows = slice(top, top + BLOCK_ROWS)
                out[rows].addmm_(left[rows, inside].to(out.dtype), right_IH)


def check_main_grad(weight: Tensor) -> None:
    """Raises ValueError unless Megatron's data-parallel wrapper has given `weight` a gradient buffer."""
    if not (hasattr(weight, "main_grad") and hasattr(weight, "grad_added_to_main_grad")):
        raise ValueError(
            f"accumulate_main_grad: weight {tuple(weight.shape)} has no main_grad; wrap the model in Megatron's "
            "DistributedDataParallel first, or leave accumulate_main_grad off"
        )


def main_grad(weight: Tensor) -> Tensor:
    """Megatron's gradient buffer of `weight`."""
    buffer: Tensor = weight.main_grad  # type: ignore[attr-defined]
    return buffer


def added_to_main_grad(weight: Tensor) -> Tensor:
    """Tells Megatron's hook that weight.main_grad has the gradient already; what autograd is then given in its place.

    The convention of Megatron's linear layers: the hook wants a gradient but does not read it, unless `zero_out_wgrad` says
    that others (the embedding that is tied to this weight) add theirs to it. No memory is spent on it: the zeros are one number
    in the weight's shape, and what nobody reads lies in main_grad itself.

    Raises:
        RuntimeError: weight.grad is set, so nothing takes what comes here: autograd would add to it, in main_grad.
    """
    weight.grad_added_to_main_grad = True  # type: ignore[attr-defined]
    if getattr(weight, "zero_out_wgrad", False):
        return weight.new_zeros(()).expand_as(weight)
    if weight.grad is not None:
        raise RuntimeError(
            f"accumulate_main_grad: weight {tuple(weight.shape)} has a .grad already; the hook of Megatron's DistributedDataParallel "
            "takes it away after each backward pass"
        )
    buffer = main_grad(weight).detach()
    if not (weight.is_contiguous() and buffer.is_contiguous() and buffer.nbytes >= weight.nbytes):
        return torch.empty_like(weight)
    return buffer.view(-1).view(weight.dtype)[: weight.numel()].view(weight.shape)
