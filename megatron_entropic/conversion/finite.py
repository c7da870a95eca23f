"""Detection of values that are not finite in a conversion, in the source or after a cast to a type of smaller range."""

import threading
from pathlib import Path

import torch
from torch import Tensor

from megatron_entropic.hf.headers import CheckpointError
from megatron_entropic.hf.values import count_not_finite, is_finite


class FiniteValues:
    """Lets blocks of tensors pass, and counts what of them is NaN or infinite. Threads may share one.

    Unless `allowed`, the first block with such a value raises CheckpointError naming the tensor and where it is from.
    """

    def __init__(self, source: Path, *, allowed: bool) -> None:
        self.source, self.allowed = source, allowed
        self.count = 0
        self._lock = threading.Lock()

    def check(self, block: Tensor, name: str) -> Tensor:
        """`block`, of the tensor `name`, in the type in which it is to be written."""
        if not block.numel() or is_finite(block):
            return block
        found = count_not_finite(block)
        if not self.allowed:
            raise CheckpointError(f"{self.source}: {found} value(s) or more of tensor {name} {_explained(block)}")
        with self._lock:
            self.count += found
        return block


def _explained(block: Tensor) -> str:
    """Describes the values and the remedy. No cast makes NaN of a number, so NaN came with the source; infinity may be either's."""
    dtype, end = str(block.dtype).removeprefix("torch."), torch.finfo(block.dtype).max
    if block.isnan().any():
        return f"are NaN or infinite in {dtype}, and NaN in any: the source is damaged; --allow-non-finite writes them as they are"
    return (
        f"are NaN or infinite in {dtype}, which ends at {end:.5g}; take a wider --dtype if the source holds numbers there, or "
        "--allow-non-finite writes them as they are"
    )
