"""The header of a safetensors file: what it holds and whether the file is whole, without touching the data."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_entropic.errors import ReportedError

DTYPE_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Types a checkpoint may have: safetensors' names, and everybody else's."""
_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_BLOCK = 1 << 20
_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit; keeps a corrupt length from asking for all memory


class CheckpointError(ReportedError, ValueError):
    """A checkpoint directory is not what it should be; the message names the files and tensors."""


@dataclass(frozen=True)
class TensorHeader:
    """One tensor of a file, as its header describes it."""

    shape: tuple[int, ...]
    dtype: str
    offset: int = 0
    """Offset of its data in the file, in bytes."""


def read_header(path: Path) -> dict[str, TensorHeader]:
    """The tensors of a safetensors file by name. Raises CheckpointError naming the file when it is truncated or not one."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        data_start = _LENGTH_BYTES + length
        if size < _LENGTH_BYTES or length > _MAX_HEADER_BYTES or data_start > size:
            raise CheckpointError(f"{path}: truncated or not safetensors: {size} bytes cannot hold its header of {length} bytes")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            ends = [entry["data_offsets"][1] for entry in header.values()]
            tensors = {name: _tensor_header(path, name, entry, data_start) for name, entry in header.items()}
        except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, KeyError, TypeError, IndexError) as problem:
            raise CheckpointError(f"{path}: not safetensors: its header cannot be read ({problem!r})") from problem
    end = data_start + max(ends, default=0)
    if end != size:
        raise CheckpointError(f"{path}: {'truncated' if size < end else 'trailing bytes'}: {size} bytes, its header says {end}")
    return tensors


def same_values(a: tuple[Path, TensorHeader], b: tuple[Path, TensorHeader]) -> bool:
    """Whether two tensors, each given by its file and header, are the same bit for bit. Reads both, a block at a time."""
    if (a[1].shape, a[1].dtype) != (b[1].shape, b[1].dtype):
        return False
    left = math.prod(a[1].shape) * _ITEM_BYTES[a[1].dtype]
    with a[0].open("rb") as first, b[0].open("rb") as second:
        first.seek(a[1].offset)
        second.seek(b[1].offset)
        while left:
            block = first.read(min(left, _BLOCK))
            if not block or block != second.read(len(block)):
                return False
            left -= len(block)
    return True


def _tensor_header(path: Path, name: str, entry: dict[str, Any], data_start: int) -> TensorHeader:
    dtype, shape = str(entry["dtype"]), entry["shape"]
    if dtype not in DTYPE_NAMES:
        raise CheckpointError(f"{path}: tensor {name} has dtype {dtype}; supported are {', '.join(DTYPE_NAMES)}")
    if not isinstance(shape, list):
        raise TypeError(f"shape of {name} is {shape!r}")
    return TensorHeader(tuple(int(n) for n in shape), dtype, data_start + int(entry["data_offsets"][0]))
