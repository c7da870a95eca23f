"""Choice of implementation for a tensor: the Triton kernels on a GPU, plain torch elsewhere. Both compute the same."""

import torch
from torch import Tensor

_KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def runs_kernels(logits: Tensor) -> bool:
    """True for GPU logits of a type the kernels know; float64 (numerical gradient checks) stays with torch on any device.

    Modules that hold kernels import Triton: import them only behind this.
    """
    return logits.is_cuda and logits.dtype in _KERNEL_DTYPES


def multiplies_into_float32(operand: Tensor) -> bool:
    """True where torch.mm takes half-precision operands to a float32 result (`out_dtype`): on a GPU, from torch 2.8 on."""
    return operand.is_cuda and "dtype" in torch.ops.aten.mm.overloads()  # type: ignore[no-untyped-call]
