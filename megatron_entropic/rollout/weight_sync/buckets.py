"""Weights on the wire: consecutive tensors share a bucket, and a manifest describes it.

Shapes: M bytes of a bucket or tensor.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_entropic.rollout.types import NamedWeights

BUCKET_BYTES = 64 * 2**20
"""Default size of a bucket. One larger tensor still travels whole, in a bucket of its own."""


@dataclass(frozen=True)
class Entry:
    """One tensor of a bucket: its Hugging Face name, dtype name as in torch, and whole shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * _dtype(self).itemsize


Bucket = list[tuple[str, Tensor]]


def entry_of(name: str, tensor: Tensor) -> Entry:
    return Entry(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))


def buckets(weights: NamedWeights, limit: int = BUCKET_BYTES) -> Iterator[Bucket]:
    """Groups consecutive tensors lazily; a bucket closes before it would exceed `limit` bytes. Never empty, order kept.

    Tensors are detached. Raises ValueError naming a tensor that occurs twice.
    """
    pending: Bucket = []
    size = 0
    seen: set[str] = set()
    for name, weight in weights:
        if name in seen:
            raise ValueError(f"weight {name!r} was produced twice in one synchronisation")
        seen.add(name)
        tensor = weight.detach()
        if pending and size + tensor.nbytes > limit:
            yield pending
            pending, size = [], 0
        pending.append((name, tensor))
        size += tensor.nbytes
    if pending:
        yield pending


def manifest(bucket: Bucket) -> dict[str, list[object]]:
    """JSON-able description of a bucket, with the field names that vLLM's weight transfer uses."""
    entries = [entry_of(name, tensor) for name, tensor in bucket]
    return {
        "names": [entry.name for entry in entries],
        "dtype_names": [entry.dtype for entry in entries],
        "shapes": [list(entry.shape) for entry in entries],
    }


def entries_of(names: Sequence[str], dtype_names: Sequence[str], shapes: Sequence[Sequence[int]]) -> list[Entry]:
    """The inverse of `manifest`. Raises ValueError when the three lists differ in length."""
    return [Entry(name, dtype, tuple(shape)) for name, dtype, shape in zip(names, dtype_names, shapes, strict=True)]


def pack(bucket: Bucket, device: torch.device | str = "cpu") -> Tensor:
    """One contiguous uint8 tensor [M] with the tensors' bytes, in order."""
    return torch.cat([tensor.to(device).contiguous().flatten().view(torch.uint8) for _, tensor in bucket])


def unpack(flat_M: Tensor, entries: Sequence[Entry]) -> Bucket:
    """The tensors of a packed bucket. Copies where a view would be misaligned, else views of `flat_M`."""
    pieces = torch.split(flat_M, [entry.nbytes for entry in entries])
    return [(entry.name, _view(piece_M, entry)) for entry, piece_M in zip(entries, pieces, strict=True)]


def _view(piece_M: Tensor, entry: Entry) -> Tensor:
    dtype = _dtype(entry)
    if piece_M.storage_offset() % dtype.itemsize:
        piece_M = piece_M.clone()
    return piece_M.view(dtype).view(entry.shape)


def _dtype(entry: Entry) -> torch.dtype:
    dtype = getattr(torch, entry.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"weight {entry.name!r} has an unknown dtype {entry.dtype!r}")
    return dtype
