"""Weights on the wire: consecutive tensors share a bucket, a manifest describes it, and both sides compute one checksum.

Shapes: M bytes of a bucket or tensor, words of a tensor.
"""

import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_entropic.rollout.types import NamedWeights

BUCKET_BYTES = 64 * 2**20
"""Default size of a bucket. One larger tensor still travels whole, in a bucket of its own."""

_WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_CHUNK_WORDS = 2**20


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


class WeightsChecksum:
    """Checksum over a stream of named tensors; it depends on order, names, dtypes, shapes and every bit of the values.

    A tensor's words w_i (its bits as integers) give sum_i (2 i + 1) w_i mod 2^64: odd factors make every change of one word
    count, and integer sums are the same on every device. Header and sum of each tensor are chained by CRC-32.
    """

    def __init__(self) -> None:
        self.crc = 0
        self.tensors = 0

    def update(self, name: str, tensor: Tensor) -> None:
        entry = entry_of(name, tensor)
        line = f"{entry.name}|{entry.dtype}|{entry.shape}|{_bit_sum(tensor.detach())}\n"
        self.crc = zlib.crc32(line.encode(), self.crc)
        self.tensors += 1

    def hexdigest(self) -> str:
        return f"{self.crc:08x}-{self.tensors}"


def weights_checksum(weights: NamedWeights) -> str:
    """The checksum that a server which received exactly `weights`, in this order, reports."""
    checksum = WeightsChecksum()
    for name, tensor in weights:
        checksum.update(name, tensor)
    return checksum.hexdigest()


def _bit_sum(tensor: Tensor) -> int:
    """sum_i (2 i + 1) w_i mod 2^64 of the tensor's bits, in pieces so that int64 copies stay small."""
    words_M = tensor.contiguous().flatten().view(_WORDS[tensor.dtype.itemsize])
    total = 0
    for start in range(0, words_M.numel(), _CHUNK_WORDS):
        chunk_M = words_M[start : start + _CHUNK_WORDS].long()
        factors_M = 2 * torch.arange(start, start + chunk_M.numel(), device=tensor.device) + 1
        total += int((chunk_M * factors_M).sum())
    return total % 2**64
