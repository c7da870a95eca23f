"""Which columns a threshold keeps, as booleans: what the selections are compared by."""

import torch
from torch import Tensor

from megatron_entropic.entropy.records import Threshold, order_keys


def kept(threshold: Threshold, raw_BV: Tensor) -> Tensor:
    """[B, V] bool membership of the rows' columns."""
    key_BV = order_keys(raw_BV)
    column_V = torch.arange(raw_BV.shape[1], device=raw_BV.device, dtype=torch.int32)
    tie_BV = (key_BV == threshold.key_T[:, None]) & (column_V < threshold.tie_end_T[:, None])
    return tie_BV.logical_or_(key_BV > threshold.key_T[:, None])
