"""Whether numbers are numbers: NaN and infinity, found while tensors pass by anyway.

One pass without a temporary of the tensor's size: about as long as copying it.
"""

import torch
from torch import Tensor


def is_finite(tensor: Tensor) -> bool:
    """Whether every element is; False for NaN, which the extremes take over."""
    low, high = torch.aminmax(tensor.detach())
    return bool(low.isfinite() & high.isfinite())


def count_not_finite(tensor: Tensor) -> int:
    """Number of elements that are NaN or infinite."""
    return int((~tensor.isfinite()).sum())
