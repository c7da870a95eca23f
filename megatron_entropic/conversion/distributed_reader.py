"""Reading a distributed checkpoint's tensors by rows: whatever layout wrote it, without loading more than is asked for.

Megatron stacks layers and experts along leading axes. Shapes: R rows, C the columns of all axes after the rows, as one.
"""

import itertools
import math
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.utils import _create_file_view

from megatron_entropic.conversion.pickles import read_metadata
from megatron_entropic.hf.files import read_exactly
from megatron_entropic.hf.headers import CheckpointError


@dataclass(frozen=True)
class _StoredChunk:
    """A rectangle of a tensor that lies in one piece in one file."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    start: int
    """First byte of its record in the file; the data begin somewhat later."""
    length: int


@dataclass(frozen=True)
class StoredTensor:
    """A whole tensor of the checkpoint, as its description says."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    chunks: tuple[_StoredChunk, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class DistributedReader:
    """The tensors of a `torch_dist` checkpoint by key; a context manager. Threads may read at once.

    Raises CheckpointError naming the file for a description that is damaged or asks for anything but tensors.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._descriptors: dict[str, int] = {}
        self._lock = threading.Lock()
        self._by_prefix: dict[tuple[str, int], dict[tuple[int, ...], list[_StoredChunk]]] = {}
        self._frames: dict[tuple[tuple[int, ...], torch.dtype], bytes] = {}
        self._data_starts: dict[tuple[str, int], int] = {}
        metadata = read_metadata(folder)
        self.tensors: dict[str, StoredTensor] = {
            key: self._stored(metadata, key, entry)
            for key, entry in metadata.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata)
        }

    def files(self) -> dict[str, int]:
        """Names of the files that hold tensors, and the bytes each must at least have."""
        ends: dict[str, int] = {}
        for tensor in self.tensors.values():
            for chunk in tensor.chunks:
                ends[chunk.file] = max(ends.get(chunk.file, 0), chunk.start + chunk.length)
        return ends

    def missing(self) -> list[str]:
        """Missing and truncated files, by their sizes, one line each; [] when all are complete."""
        problems = []
        for name, end in sorted(self.files().items()):
            path = self.folder / name
            if not path.is_file():
                problems.append(f"{path}: missing")
            elif path.stat().st_size < end:
                problems.append(f"{path}: truncated: {path.stat().st_size} bytes, .metadata says at least {end}")
        return problems

    def locate(self, key: str) -> None:
        """Finds where the data of a tensor's chunks begin, so that read_rows may then be called from any thread.

        Raises CheckpointError naming the file when a record is damaged or of another shape than its description says.
        """
        for chunk in self.tensors[key].chunks:
            if (chunk.file, chunk.start) not in self._data_starts:
                offset = self._data_offset(key, chunk)
                if offset + math.prod(chunk.sizes) * self.tensors[key].dtype.itemsize > chunk.length:
                    raise CheckpointError(f"{self.folder / chunk.file}: the record of {key} is shorter than its tensor")
                self._data_starts[chunk.file, chunk.start] = chunk.start + offset

    def read_rows(self, key: str, prefix: tuple[int, ...], start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` of the tensor at `prefix` of the leading axes: [stop - start, C], or [stop - start] without columns.

        Raises CheckpointError when the chunks do not cover them.
        """
        stored = self.tensors[key]
        axis = len(prefix)
        columns = stored.shape[axis + 1 :]
        out_RC = torch.empty(stop - start, math.prod(columns), dtype=stored.dtype)
        covered = 0
        for chunk in self._chunks_at(key, axis).get(prefix, ()):
            covered += self._read_chunk(chunk, stored, prefix, start, out_RC)
        if covered != out_RC.numel():
            raise CheckpointError(f"{self.folder}: {key}: its chunks do not cover rows {start} to {stop} exactly once")
        return out_RC.view(stop - start, *columns)

    def _chunks_at(self, key: str, axis: int) -> dict[tuple[int, ...], list[_StoredChunk]]:
        """The chunks by the index of the leading axes they are at: an MoE model's tensors have tens of thousands."""
        with self._lock:
            if (key, axis) not in self._by_prefix:
                index: dict[tuple[int, ...], list[_StoredChunk]] = {}
                for chunk in self.tensors[key].chunks:
                    bounds = zip(chunk.offsets[:axis], chunk.sizes[:axis], strict=True)
                    for prefix in itertools.product(*(range(offset, offset + size) for offset, size in bounds)):
                        index.setdefault(prefix, []).append(chunk)
                self._by_prefix[key, axis] = index
            return self._by_prefix[key, axis]

    def _read_chunk(self, chunk: _StoredChunk, stored: StoredTensor, prefix: tuple[int, ...], start: int, out_RC: Tensor) -> int:
        """Copies what the chunk has of the wanted rows into `out_RC`; returns how many elements that were."""
        axis = len(prefix)
        plane = 0
        for index, offset, size in zip(prefix, chunk.offsets, chunk.sizes, strict=False):
            plane = plane * size + index - offset
        first_row, rows = chunk.offsets[axis], chunk.sizes[axis]
        low, high = max(start, first_row), min(start + out_RC.shape[0], first_row + rows)
        if low >= high:
            return 0
        if any(size != whole for size, whole in zip(chunk.sizes[axis + 2 :], stored.shape[axis + 2 :], strict=True)):
            raise CheckpointError(
                f"{self.folder / chunk.file}: a tensor is cut along more than its first two axes, which is not supported"
            )
        width = math.prod(chunk.sizes[axis + 1 :])
        left = chunk.offsets[axis + 1] * math.prod(chunk.sizes[axis + 2 :]) if len(chunk.sizes) > axis + 1 else 0
        data = self._data_starts[chunk.file, chunk.start] + (plane * rows + low - first_row) * width * stored.dtype.itemsize
        whole_rows = width == out_RC.shape[1]
        target = out_RC[low - start : high - start] if whole_rows else torch.empty(high - low, width, dtype=stored.dtype)
        read_exactly(self._descriptor(chunk.file), target, data, self.folder / chunk.file)
        if not whole_rows:
            out_RC[low - start : high - start, left : left + width] = target
        return (high - low) * width

    def _data_offset(self, key: str, chunk: _StoredChunk) -> int:
        """Offset of the elements in the chunk's record. torch reads its own container: with fake tensors, without the data."""
        path = self.folder / chunk.file
        frame = self._frames.get((chunk.sizes, self.tensors[key].dtype), b"")
        if frame and os.pread(self._descriptor(chunk.file), len(frame), chunk.start) == frame:
            return len(frame)  # as in another record of this shape and type, which torch has read
        try:
            with path.open("rb") as file, FakeTensorMode():
                record: Any = _create_file_view(file, chunk.start, chunk.length)
                tensor = torch.load(record, map_location="cpu", weights_only=True)
        except Exception as problem:  # a damaged container raises nearly anything
            raise CheckpointError(f"{path}: the record of {key} cannot be read ({type(problem).__name__}: {problem})") from problem
        if tuple(tensor.shape) != chunk.sizes or not tensor.is_contiguous() or tensor.storage_offset():
            raise CheckpointError(f"{path}: the record of {key} is {list(tensor.shape)}, .metadata says {list(chunk.sizes)}")
        offset: int = tensor.untyped_storage()._checkpoint_offset
        self._frames[chunk.sizes, tensor.dtype] = os.pread(self._descriptor(chunk.file), offset, chunk.start)
        return offset

    def _stored(self, metadata: Any, key: str, entry: TensorStorageMetadata) -> StoredTensor:
        chunks = []
        for chunk in entry.chunks:
            info = metadata.storage_data.get(MetadataIndex(key, chunk.offsets))
            if info is None or Path(info.relative_path).name != info.relative_path:
                raise CheckpointError(f"{self.folder / '.metadata'}: does not say in which file of the folder {key} is")
            chunks.append(_StoredChunk(tuple(chunk.offsets), tuple(chunk.sizes), info.relative_path, info.offset, info.length))
        return StoredTensor(tuple(entry.size), entry.properties.dtype, tuple(chunks))

    def _descriptor(self, file: str) -> int:
        with self._lock:
            if file not in self._descriptors:
                self._descriptors[file] = os.open(self.folder / file, os.O_RDONLY)
            return self._descriptors[file]

    def close(self) -> None:
        """Closes the files; safe to call twice."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
