"""Megatron distributed checkpoint, of whatever layout -> Hugging Face directory, block by block.

OUT/model*.safetensors, model.safetensors.index.json, config.json, tokenizer ... as transformers reads them
OUT/SHA256SUMS      of the weight files, as `sha256sum --check` reads it
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_entropic.conversion.distributed_reader import DistributedReader, StoredTensor
from megatron_entropic.conversion.keys import Place, alternative_places
from megatron_entropic.conversion.output import Job, OutputDirectory, OutputFile
from megatron_entropic.hf.architectures import Architecture
from megatron_entropic.hf.directory import INDEX_FILE, SINGLE_FILE
from megatron_entropic.hf.files import DEFAULT_SHARD_BYTES, DTYPES, copy_companions, tensor_bytes
from megatron_entropic.hf.headers import CheckpointError
from megatron_entropic.hf.segments import segments
from megatron_entropic.hf.tables import Layout, Row, checkpoint_rows, hf_shapes

BLOCK_BYTES = 32 * 2**20
"""What a worker holds at a time, whatever the sizes of tensors and files; a few copies of it."""
MASTER_PREFIX = "optimizer.state.param."
"""Where a training checkpoint has the optimizer's float32 masters of the weights."""
SUMS_FILE = "SHA256SUMS"
_CODES = {dtype: code for code, dtype in DTYPES.items()}


@dataclass(frozen=True)
class ExportOptions:
    """What the Hugging Face directory is to be."""

    dtype: str | None = None
    """Of the written weights, as torch names it; None: as they are. Wider than they are: from the optimizer's masters if there."""
    max_shard_bytes: int = DEFAULT_SHARD_BYTES
    workers: int = 2


def export_hf(weights: Path, companions: Path, out: Path, options: ExportOptions) -> Path:
    """Writes `out` from the distributed checkpoint in the folder `weights`; returns `out`.

    Args:
        companions: directory with config.json, tokenizer and so on, which are copied byte for byte (config.json's dtype excepted).

    Resumes what an interrupted export of the same checkpoint and options left behind. Raises CheckpointError with a line for
    every problem of the checkpoint, OSError naming the path when the disk is full.
    """
    arch = Architecture.from_hf(companions)
    with DistributedReader(weights) as reader:
        exporter = _Exporter(reader, arch, options)
        plan = exporter.files()
        with OutputDirectory(out, _fingerprint(weights, options)) as output:
            jobs = [Job(name, sum(tensor.nbytes for tensor in tensors), exporter.writer(tensors)) for name, tensors in plan.items()]
            output.run(jobs, options.workers, "export")
            _complete(output, plan, companions, options)
            return output.publish()


@dataclass(frozen=True)
class _Tensor:
    """A Hugging Face tensor and where its rows are: (first row there, how many), in the order they have here."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    place: Place
    runs: tuple[tuple[int, int], ...]

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class _Exporter:
    def __init__(self, reader: DistributedReader, arch: Architecture, options: ExportOptions) -> None:
        self.reader, self.arch, self.options = reader, arch, options
        self.shapes = hf_shapes(arch)

    def files(self) -> dict[str, list[_Tensor]]:
        """The tensors of every file, by name; raises CheckpointError with all that is missing or does not fit."""
        problems: list[str] = self.reader.missing()
        tensors = [tensor for row in checkpoint_rows(self.arch) for tensor in self._tensors(row, problems)]
        problems += self._unexpected()
        if problems:
            raise CheckpointError("\n".join([f"{self.reader.folder}: {len(problems)} problem(s) in this checkpoint:", *problems]))
        for key in {tensor.place.key for tensor in tensors}:
            self.reader.locate(key)
        shards = _shards(tensors, self.options.max_shard_bytes)
        if len(shards) == 1:
            return {SINGLE_FILE: shards[0]}
        return {f"model-{number:05d}-of-{len(shards):05d}.safetensors": shard for number, shard in enumerate(shards, start=1)}

    def writer(self, tensors: Sequence[_Tensor]) -> Any:
        # As the safetensors library orders a file: wide types first, then by name.
        ordered = sorted(tensors, key=lambda tensor: (-tensor.dtype.itemsize, tensor.name))

        def write(file: OutputFile) -> None:
            file.write(_header(ordered))
            for tensor in ordered:
                for block in self._blocks(tensor):
                    file.write(tensor_bytes(block.contiguous()))

        return write

    def _tensors(self, row: Row, problems: list[str]) -> Iterator[_Tensor]:
        found = self._find(row)
        if found is None:
            problems.append(f"{row.megatron} is missing, which {', '.join(row.hf)} would be made of")
            return
        where, stored = found
        shape = stored.shape[len(where.prefix) :]
        padded_vocab = shape[0] if row.layout is Layout.VOCABULARY else self.arch.vocab_size
        parts = segments(row, self.arch, self.shapes, padded_vocab)
        rows = sum(part.stop - part.start for part in parts)
        wanted = (*where.counts, rows, *self.shapes[row.hf[0]][1:])
        if stored.shape != wanted:
            problems.append(f"{where.key} has shape {list(stored.shape)}, config.json asks for {list(wanted)}")
            return
        dtype = getattr(torch, self.options.dtype) if self.options.dtype else stored.dtype
        if dtype not in _CODES:
            problems.append(f"{where.key} has dtype {stored.dtype}, which safetensors of a model have not")
            return
        ends = list(itertools.accumulate(part.stop - part.start for part in parts))
        starts = [0, *ends[:-1]]
        for name in row.hf:
            runs = [(first, part.stop - part.start) for first, part in zip(starts, parts, strict=True) if part.name == name]
            yield _Tensor(name, self.shapes[name], dtype, where, tuple(runs))

    def _find(self, row: Row) -> tuple[Place, StoredTensor] | None:
        """The row's place in this checkpoint; its float32 master where more digits are asked for than the weights have."""
        for where in alternative_places(row, self.arch):
            stored = self.reader.tensors.get(where.key)
            if stored is None:
                continue
            master = self.reader.tensors.get(MASTER_PREFIX + where.key)
            if self.options.dtype and master and getattr(torch, self.options.dtype).itemsize > stored.dtype.itemsize:
                return Place(MASTER_PREFIX + where.key, where.prefix, where.counts), master
            return where, stored
        return None

    def _unexpected(self) -> list[str]:
        """Weights of the checkpoint that no row asks for."""
        known = {where.key for row in checkpoint_rows(self.arch) for where in alternative_places(row, self.arch)}
        if self.arch.tied_embeddings:
            known.add("output_layer.weight")
        strangers = [key for key in self.reader.tensors if key not in known and not key.startswith("optimizer.")]
        return [f"{key} {list(self.reader.tensors[key].shape)} maps to no tensor of a {self.arch.architecture}" for key in strangers]

    def _blocks(self, tensor: _Tensor) -> Iterator[Tensor]:
        width = torch.Size(tensor.shape[1:]).numel()
        step = max(1, BLOCK_BYTES // (width * max(4, tensor.dtype.itemsize)))
        for first, rows in tensor.runs:
            for start in range(first, first + rows, step):
                stop = min(start + step, first + rows)
                yield self.reader.read_rows(tensor.place.key, tensor.place.prefix, start, stop).to(tensor.dtype)


def _shards(tensors: Sequence[_Tensor], max_bytes: int) -> list[list[_Tensor]]:
    """The tensors in order, in groups of at most `max_bytes` (a larger tensor is alone)."""
    shards: list[list[_Tensor]] = [[]]
    held = 0
    for tensor in tensors:
        if shards[-1] and held + tensor.nbytes > max_bytes:
            shards.append([])
            held = 0
        shards[-1].append(tensor)
        held += tensor.nbytes
    return shards


def _header(tensors: Sequence[_Tensor]) -> bytes:
    """The header of a safetensors file that holds `tensors` one after the other."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        start, end = end, end + tensor.nbytes
        header[tensor.name] = {"dtype": _CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    content = json.dumps(header, separators=(",", ":")).encode()
    content += b" " * (-len(content) % 8)
    return len(content).to_bytes(8, "little") + content


def _complete(output: OutputDirectory, plan: dict[str, list[_Tensor]], companions: Path, options: ExportOptions) -> None:
    """Writes the index, the model's other files and the checksums."""
    dtype = getattr(torch, options.dtype) if options.dtype else None
    copy_companions(companions, output.folder, dtype)
    if len(plan) > 1:
        tensors = [tensor for shard in plan.values() for tensor in shard]
        parameters = sum(torch.Size(tensor.shape).numel() for tensor in tensors)
        metadata = {"total_parameters": parameters, "total_size": sum(tensor.nbytes for tensor in tensors)}
        weight_map = {tensor.name: file for file, shard in plan.items() for tensor in shard}
        index = {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}
        (output.folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    sums = "".join(f"{output.done[file]['sha256']}  {file}\n" for file in plan)
    (output.folder / SUMS_FILE).write_text(sums, encoding="utf-8")


def _fingerprint(weights: Path, options: ExportOptions) -> dict[str, Any]:
    files = {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in sorted(weights.iterdir())}
    return {"export": str(weights.resolve()), "dtype": options.dtype, "max_shard_bytes": options.max_shard_bytes, "files": files}
