"""Choice of implementation for a tensor: the Triton kernels on a GPU, plain torch elsewhere. Both compute the same."""

from functools import cache

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


def adds_into_float32(operand: Tensor) -> bool:
    """True where torch.addmm adds a product of half-precision operands to a float32 matrix, in that matrix."""
    return multiplies_into_float32(operand) and _adds_on(operand.device, operand.dtype)


@cache
def _adds_on(device: torch.device, dtype: torch.dtype) -> bool:
    """Asked by doing it once: torch 2.8 has the operation and refuses a float32 matrix, later versions take it."""
    total_88 = torch.zeros(8, 8, device=device)
    ones_88 = torch.ones(8, 8, dtype=dtype, device=device)
    try:
        torch.addmm(total_88, ones_88, ones_88, out_dtype=torch.float32, out=total_88)
    except RuntimeError:
        return False
    return True


@cache
def memory_of_gpu(device: torch.device) -> int | None:
    """Bytes of a GPU's memory; None for any other device."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
