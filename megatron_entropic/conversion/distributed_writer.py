"""Writing a distributed checkpoint as Megatron-Core's `torch_dist` backend reads it, one chunk of one parameter after the other.

A file is a sequence of records, each a tensor as torch.save writes it; `.metadata` says which rectangle of which tensor each is.
"""

import functools
import json
import math
import pickle
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.checkpoint.filesystem import CURRENT_DCP_VERSION, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from megatron_entropic.conversion.output import OutputFile
from megatron_entropic.hf.files import tensor_bytes


@dataclass(frozen=True)
class Rectangle:
    """A chunk of the tensor `key`: `sizes` elements from `offsets` on, of a whole of `shape`."""

    key: str
    shape: tuple[int, ...]
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    dtype: str
    """As torch names it, without "torch."."""

    @property
    def nbytes(self) -> int:
        return math.prod(self.sizes) * _dtype(self.dtype).itemsize


def write_record(file: OutputFile, rectangle: Rectangle, blocks: Iterable[Tensor]) -> dict[str, Any]:
    """Writes the rectangle's elements, which `blocks` give in order; returns what `write_metadata` needs to know of it, as JSON."""
    head, tail = _container(rectangle.sizes, rectangle.dtype)
    start = file.position
    file.write(head)
    data_start = file.position
    for block in blocks:
        file.write(tensor_bytes(block.contiguous()))
    assert file.position - data_start == rectangle.nbytes, rectangle
    file.write(tail)
    return {**asdict(rectangle), "start": start, "length": file.position - start}


def write_metadata(folder: Path, records: dict[str, list[dict[str, Any]]]) -> None:
    """Completes a checkpoint whose files hold `records`: .metadata, metadata.json and an empty common.pt."""
    tensors: dict[str, Any] = {}
    storage: dict[MetadataIndex, _StorageInfo] = {}
    for file, entries in records.items():
        for entry in entries:
            properties = TensorProperties(dtype=_dtype(entry["dtype"]))
            tensor = tensors.setdefault(entry["key"], TensorStorageMetadata(properties, torch.Size(entry["shape"]), []))
            chunk = ChunkStorageMetadata(offsets=torch.Size(entry["offsets"]), sizes=torch.Size(entry["sizes"]))
            storage[MetadataIndex(entry["key"], chunk.offsets, len(tensor.chunks))] = _StorageInfo(
                file, entry["start"], entry["length"]
            )
            tensor.chunks.append(chunk)
    metadata = Metadata(tensors, storage_data=storage, storage_meta=StorageMeta(), version=CURRENT_DCP_VERSION)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    torch.save({}, folder / "common.pt")
    backends = {"sharded_backend": "torch_dist", "sharded_backend_version": 1, "common_backend": "torch", "common_backend_version": 1}
    (folder / "metadata.json").write_text(json.dumps(backends), encoding="utf-8")


@functools.lru_cache(maxsize=256)
def _container(sizes: tuple[int, ...], dtype: str) -> tuple[bytes, bytes]:
    """The bytes that torch.save writes before and after the elements of a contiguous tensor."""
    recorder: Any = _Recorder()
    with FakeTensorMode():
        tensor = torch.empty(sizes, dtype=_dtype(dtype))
    with torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save(tensor, recorder)
    return bytes(recorder.head), bytes(recorder.tail)


class _Recorder:
    """A file for torch.save under skip_data, which seeks over the elements instead of writing them."""

    def __init__(self) -> None:
        self.head, self.tail = bytearray(), bytearray()
        self._skipped = 0

    def write(self, content: Any) -> int:
        (self.tail if self._skipped else self.head).extend(content)
        return len(content)

    def seek(self, offset: int, whence: int = 0) -> int:
        assert whence == 1, "torch skips forward"
        self._skipped += offset
        return self.tell()

    def tell(self) -> int:
        return len(self.head) + self._skipped + len(self.tail)

    def flush(self) -> None: ...


def _dtype(name: str) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, name)
    return dtype
