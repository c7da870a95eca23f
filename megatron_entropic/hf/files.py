"""Hugging Face model directories on disk: a streaming reader and an all-or-nothing writer."""

import json
import math
import os
import shutil
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from megatron_entropic.hf.directory import (
    CONFIG_FILE,
    INDEX_FILE,
    SINGLE_FILE,
    read_companions,
    redundant_tensors,
    says_tied,
    weight_files,
)
from megatron_entropic.hf.headers import DTYPE_NAMES, CheckpointError, TensorHeader, read_header
from megatron_entropic.system.atomic_files import to_disk

DEFAULT_SHARD_BYTES = 5 * 2**30
DTYPES: dict[str, torch.dtype] = {code: getattr(torch, name) for code, name in DTYPE_NAMES.items()}


class HFReader:
    """Reads single tensors of a model directory's safetensors files, one at a time; a context manager.

    Raises CheckpointError naming the file when the index or a file is missing, broken or truncated.
    """

    def __init__(self, hf_dir: Path) -> None:
        self._dir = Path(hf_dir)
        self._file_of: dict[str, str] = {}
        self._headers: dict[str, TensorHeader] = {}
        self._open: dict[str, Any] = {}
        self._descriptors: dict[Path, int] = {}
        self._lock = threading.Lock()
        self._stack = ExitStack()
        for file in weight_files(self._dir):
            for name, header in read_header(self._dir / file).items():
                self._file_of[name], self._headers[name] = file, header
        for name in redundant_tensors(self._headers, tied=says_tied(self._dir)):
            del self._headers[name]

    def names(self) -> tuple[str, ...]:
        """Names of all tensors but redundant ones, file by file."""
        return tuple(self._headers)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._header(name).shape

    def dtype(self, name: str) -> torch.dtype:
        return DTYPES[self._header(name).dtype]

    def file(self, name: str) -> Path:
        """The file that holds tensor `name`."""
        self._header(name)
        return self._dir / self._file_of[name]

    def read(self, name: str) -> Tensor:
        """The whole tensor on the CPU, in the file's dtype."""
        self._header(name)
        file = self._file_of[name]
        if file not in self._open:
            self._open[file] = self._stack.enter_context(safe_open(self._dir / file, framework="pt", device="cpu"))
        tensor: Tensor = self._open[file].get_tensor(name)
        return tensor

    def read_rows(self, name: str, start: int, stop: int, columns: tuple[int, int] | None = None) -> Tensor:
        """Rows `start` to `stop` of a tensor, or of its `columns` (from, to): read, not mapped, and nothing else with them.

        Threads may call this at once.
        """
        header, path = self._header(name), self._dir / self._file_of[name]
        dtype = DTYPES[header.dtype]
        row_bytes = math.prod(header.shape[1:]) * dtype.itemsize
        first, last = columns or (0, math.prod(header.shape[1:]))
        rows = torch.empty(stop - start, *((last - first,) if columns else header.shape[1:]), dtype=dtype)
        offset = header.offset + start * row_bytes + first * dtype.itemsize
        if columns is None:
            read_exactly(self._descriptor(path), rows, offset, path)
            return rows
        for row in rows:
            read_exactly(self._descriptor(path), row, offset, path)
            offset += row_bytes
        return rows

    def _descriptor(self, path: Path) -> int:
        with self._lock:
            if path not in self._descriptors:
                self._descriptors[path] = os.open(path, os.O_RDONLY)
                self._stack.callback(os.close, self._descriptors[path])
            return self._descriptors[path]

    def close(self) -> None:
        """Closes the files; safe to call twice."""
        self._open.clear()
        self._descriptors.clear()
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _header(self, name: str) -> TensorHeader:
        if name not in self._headers:
            raise CheckpointError(f"{self._dir}: no tensor {name} in its safetensors files")
        return self._headers[name]


def read_exactly(descriptor: int, target: Tensor, offset: int, path: Path) -> None:
    """Fills a contiguous tensor from the bytes at `offset`. Raises CheckpointError naming `path` when the file ends before."""
    view = tensor_bytes(target)
    while view:
        count = os.preadv(descriptor, [view], offset)
        if count == 0:
            raise CheckpointError(f"{path}: truncated: it ends at byte {offset}")
        view, offset = view[count:], offset + count


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor, of any type."""
    array: Any = tensor.view(-1).view(torch.uint8).numpy()
    return memoryview(array)


def write_hf(
    out_dir: Path,
    weights: Iterable[tuple[str, Tensor]],
    source: Path | Mapping[str, bytes],
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    replace: bool = False,
) -> None:
    """Writes a Hugging Face model directory: `weights` as safetensors, everything else from `source`.

    `weights` are consumed one by one; no more than `max_shard_bytes` (or one tensor) are held at a time. With `dtype` the
    tensors are cast and config.json says so; without, both stay as they are. `source` is a model directory, or all of one but
    its weights as read_companions gives it. The directory appears atomically.
    Raises FileExistsError when `out_dir` exists and is not empty, unless it is the caller's own, which this one is to `replace`.
    """
    out_dir = Path(out_dir)
    with _directory_appearing_whole(out_dir, replace) as building:
        _write_weights(building, weights, dtype, max_shard_bytes)
        copy_companions(source, building, dtype)


def copy_companions(source: Path | Mapping[str, bytes], out_dir: Path, dtype: torch.dtype | None) -> None:
    """Copies all of a model but its weights, byte for byte; of config.json only `dtype` is changed when given."""
    companions = read_companions(source) if isinstance(source, Path) else source
    for name, content in companions.items():
        (out_dir / name).parent.mkdir(exist_ok=True)
        (out_dir / name).write_bytes(content)
    if dtype is not None:
        _set_dtype(out_dir / CONFIG_FILE, str(dtype).removeprefix("torch."))


@contextmanager
def _directory_appearing_whole(out_dir: Path, replace: bool) -> Iterator[Path]:
    """A temporary folder beside `out_dir` that becomes it, synced to disk, when the block succeeds, and else disappears.

    With `replace`, an earlier `out_dir` goes only then, and so does what a kill left behind.
    """
    if replace:
        for leftover in out_dir.parent.iterdir() if out_dir.parent.is_dir() else ():
            if leftover.name.startswith(f".{out_dir.name}."):  # not a pattern: the name may hold [ or *
                shutil.rmtree(leftover)
    elif out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise FileExistsError(f"{out_dir}: exists already; remove it or choose another directory")
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out_dir.name}.", dir=out_dir.parent) as holder:
        building = Path(holder) / out_dir.name
        building.mkdir()
        yield building
        for path in (*building.rglob("*"), building):
            to_disk(path)
        if out_dir.exists():
            os.rename(out_dir, Path(holder) / "earlier")
        os.rename(building, out_dir)
        to_disk(out_dir.parent)


def _write_weights(out_dir: Path, weights: Iterable[tuple[str, Tensor]], dtype: torch.dtype | None, max_shard_bytes: int) -> None:
    shards: list[list[str]] = []
    parameters = total_bytes = 0
    for pending in _shards(weights, dtype, max_shard_bytes):
        save_file(pending, out_dir / f"{len(shards)}.part", metadata={"format": "pt"})
        shards.append(list(pending))
        parameters += sum(tensor.numel() for tensor in pending.values())
        total_bytes += sum(tensor.nbytes for tensor in pending.values())
    if len(shards) == 1:
        (out_dir / "0.part").rename(out_dir / SINGLE_FILE)
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (out_dir / f"{number}.part").rename(out_dir / file)
        weight_map.update(dict.fromkeys(names, file))
    metadata = {"total_parameters": parameters, "total_size": total_bytes}
    _write_json(out_dir / INDEX_FILE, {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))})


def _shards(weights: Iterable[tuple[str, Tensor]], dtype: torch.dtype | None, max_shard_bytes: int) -> Iterator[dict[str, Tensor]]:
    """Groups the weights, in order, into dicts of at most `max_shard_bytes` (a larger tensor is alone in its dict)."""
    pending: dict[str, Tensor] = {}
    held = 0
    for name, tensor in weights:
        tensor = tensor.detach().to(device="cpu", dtype=dtype or tensor.dtype).contiguous()
        if pending and held + tensor.nbytes > max_shard_bytes:
            yield pending
            pending, held = {}, 0
        pending[name] = tensor
        held += tensor.nbytes
    yield pending


def _set_dtype(path: Path, wanted: str) -> None:
    config = json.loads(path.read_text(encoding="utf-8"))
    field = "torch_dtype" if "torch_dtype" in config else "dtype"  # transformers 4 and 5
    if config.get(field) != wanted:
        both = {name: wanted for name in ("dtype", "torch_dtype") if name in config}
        _write_json(path, {**config, field: wanted, **both})


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
