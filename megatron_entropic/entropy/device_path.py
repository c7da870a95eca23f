"""Choice of implementation for a tensor: the Triton kernels on a GPU, plain torch elsewhere. Both compute the same."""

import torch
from torch import Tensor

_KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def has_kernels(device_type: str, dtype: torch.dtype) -> bool:
    """True for GPUs and a type the kernels know; float64 (numerical gradient checks) stays with torch on any device."""
    return device_type == "cuda" and dtype in _KERNEL_DTYPES


def runs_kernels(logits: Tensor) -> bool:
    """Whether logits like these go to the kernels. Modules that hold kernels import Triton: import them only behind this."""
    return has_kernels(logits.device.type, logits.dtype)


def multiplies_into_float32(operand: Tensor) -> bool:
    """True where torch.mm takes half-precision operands to a float32 result (`out_dtype`): on a GPU, from torch 2.8 on."""
    return operand.is_cuda and "dtype" in torch.ops.aten.mm.overloads()  # type: ignore[no-untyped-call]
