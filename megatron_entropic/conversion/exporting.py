"""Megatron distributed checkpoint, of whatever layout -> Hugging Face directory, block by block.

OUT/model*.safetensors, model.safetensors.index.json, config.json, tokenizer ... as transformers reads them
OUT/SHA256SUMS      of the weight files, as `sha256sum --check` reads it
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_entropic.conversion.finite import FiniteValues
from megatron_entropic.conversion.output import Job, OutputDirectory, OutputFile
from megatron_entropic.conversion.view import DistributedView
from megatron_entropic.hf.architectures import Architecture
from megatron_entropic.hf.directory import INDEX_FILE, SINGLE_FILE
from megatron_entropic.hf.files import DEFAULT_SHARD_BYTES, DTYPES, HFReader, copy_companions, tensor_bytes

BLOCK_BYTES = 32 * 2**20
"""Bytes that a worker holds at a time, whatever the sizes of tensors and files; a few copies of it."""
SUMS_FILE = "SHA256SUMS"
_CODES = {dtype: code for code, dtype in DTYPES.items()}


@dataclass(frozen=True)
class ExportOptions:
    """Options of the exported Hugging Face directory."""

    dtype: str | None = None
    """Of the written weights, as torch names it; None: as they are."""
    max_shard_bytes: int = DEFAULT_SHARD_BYTES
    workers: int = 2
    allow_non_finite: bool = False
    """Whether NaN and infinity, as they are or by the cast to `dtype`, are written and counted; else they are refused."""


def export_hf(weights: Path, companions: Path, out: Path, options: ExportOptions) -> int:
    """Writes `out` from the distributed checkpoint in `weights`; returns how many of the values it wrote are NaN or infinite.

    Args:
        companions: directory with config.json, tokenizer and so on, which are copied byte for byte (config.json's dtype excepted).

    Resumes what an interrupted export of the same checkpoint and options left behind. Raises CheckpointError with a line for
    every problem of the checkpoint, or naming a tensor with values that are not finite; OSError naming the path when the disk is
    full.
    """
    dtype = getattr(torch, options.dtype) if options.dtype else None
    with DistributedView(weights, Architecture.from_hf(companions), dtype) as view:
        plan = _files(view, options.max_shard_bytes)
        values = FiniteValues(weights, allowed=options.allow_non_finite)
        with OutputDirectory(out, _fingerprint(weights, options)) as output:
            jobs = [Job(file, sum(nbytes(view, name) for name in names), _writer(view, names, values)) for file, names in plan.items()]
            output.run(jobs, options.workers, "export")
            copy_companions(companions, output.folder, dtype)
            if len(plan) > 1:
                _write_index(output.folder, view, plan)
            sums = "".join(f"{output.done[file]['sha256']}  {file}\n" for file in plan)
            (output.folder / SUMS_FILE).write_text(sums, encoding="utf-8")
            output.publish()
            return values.count


def blocks(tensors: DistributedView | HFReader, name: str) -> Iterator[Tensor]:
    """The rows of a tensor from first to last, BLOCK_BYTES at a time (counted as if they were float32 at least)."""
    rows, *columns = tensors.shape(name)
    step = max(1, BLOCK_BYTES // (math.prod(columns) * max(4, tensors.dtype(name).itemsize)))
    for start in range(0, rows, step):
        yield tensors.read_rows(name, start, min(start + step, rows))


def nbytes(tensors: DistributedView | HFReader, name: str) -> int:
    """Size of a tensor."""
    return math.prod(tensors.shape(name)) * tensors.dtype(name).itemsize


def _files(view: DistributedView, max_bytes: int) -> dict[str, list[str]]:
    """The tensors of every file: in checkpoint order, in groups of at most `max_bytes` (a larger tensor is alone)."""
    shards: list[list[str]] = [[]]
    held = 0
    for name in view.names():
        if shards[-1] and held + nbytes(view, name) > max_bytes:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += nbytes(view, name)
    if len(shards) == 1:
        return {SINGLE_FILE: shards[0]}
    return {f"model-{number:05d}-of-{len(shards):05d}.safetensors": shard for number, shard in enumerate(shards, start=1)}


def _writer(view: DistributedView, names: Sequence[str], values: FiniteValues) -> Callable[[OutputFile], None]:
    # As the safetensors library orders a file: wide types first, then by name.
    ordered = sorted(names, key=lambda name: (-view.dtype(name).itemsize, name))

    def write(file: OutputFile) -> None:
        file.write(_header(view, ordered))
        for name in ordered:
            for block in blocks(view, name):
                file.write(tensor_bytes(values.check(block, name)))

    return write


def _header(view: DistributedView, names: Sequence[str]) -> bytes:
    """The header of a safetensors file that holds these tensors one after the other."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        start, end = end, end + nbytes(view, name)
        header[name] = {"dtype": _CODES[view.dtype(name)], "shape": list(view.shape(name)), "data_offsets": [start, end]}
    content = json.dumps(header, separators=(",", ":")).encode()
    content += b" " * (-len(content) % 8)
    return len(content).to_bytes(8, "little") + content


def _write_index(folder: Path, view: DistributedView, plan: dict[str, list[str]]) -> None:
    names = view.names()
    metadata = {
        "total_parameters": sum(math.prod(view.shape(name)) for name in names),
        "total_size": sum(nbytes(view, name) for name in names),
    }
    weight_map = {name: file for file, names in plan.items() for name in names}
    index = {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _fingerprint(weights: Path, options: ExportOptions) -> dict[str, Any]:
    files = {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in sorted(weights.iterdir())}
    return {"export": str(weights.resolve()), "dtype": options.dtype, "max_shard_bytes": options.max_shard_bytes, "files": files}
