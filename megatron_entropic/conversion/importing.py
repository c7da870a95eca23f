"""Hugging Face directory -> Megatron distributed checkpoint, block by block.

OUT/policy/         the weights as Megatron-Core's torch_dist backend writes and reads them, for every layout
OUT/hf/             config.json, tokenizer, chat template and so on, byte for byte
OUT/state.json      where it comes from and how it was cut
OUT/manifest.json   size and SHA-256 of every file
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_entropic.checkpoint_files.manifest import write_manifest
from megatron_entropic.config import ParallelConfig
from megatron_entropic.conversion.distributed_writer import Rectangle, write_metadata, write_record
from megatron_entropic.conversion.finite import FiniteValues
from megatron_entropic.conversion.keys import Piece, Split, pieces
from megatron_entropic.conversion.output import JOURNAL, Job, OutputDirectory, OutputFile
from megatron_entropic.hf.architectures import Architecture
from megatron_entropic.hf.check import dtype_problems, hf_problems, raise_problems
from megatron_entropic.hf.directory import read_companions
from megatron_entropic.hf.files import HFReader
from megatron_entropic.hf.layout import split_problems
from megatron_entropic.hf.segments import cut, segments
from megatron_entropic.hf.tables import Row, checkpoint_rows, hf_shapes, padded_vocab_size

BLOCK_BYTES = 32 * 2**20
"""Bytes that a worker holds at a time, whatever the sizes of tensors and files; a few copies of it."""
FILE_BYTES = 2**30
"""A rank's chunks are spread over files of about this size: the units of parallel work and of resuming."""
FORMAT = 1


@dataclass(frozen=True)
class ImportOptions:
    """Sharding of the checkpoint. It loads under every layout; under this one every rank finds its shards in one piece."""

    split: Split = field(default_factory=Split)
    dtype: str | None = None
    """Of the written weights, as torch names it; None: as they come."""
    vocab_pad_multiple: int = 128
    workers: int = 2
    allow_non_finite: bool = False
    """Whether NaN and infinity, as they are or by the cast to `dtype`, are written and counted; else they are refused."""


def import_hf(source: Path, out: Path, options: ImportOptions) -> int:
    """Writes `out` from the Hugging Face directory `source`; returns how many of the values it wrote are NaN or infinite.

    Resumes what an interrupted import of the same source and options left behind. Raises CheckpointError with a line for every
    problem of the source and of the layout, or naming a tensor with values that are not finite; OSError naming the path when the
    disk is full.
    """
    arch = Architecture.from_hf(source)
    problems = hf_problems(source, arch) + _layout_problems(arch, options.split)
    raise_problems(source, problems + ([] if options.dtype else list(dtype_problems(source))))
    with HFReader(source) as reader:
        importer = _Importer(source, reader, arch, options)
        plan = importer.files()
        with OutputDirectory(out, _fingerprint(source, options)) as output:
            jobs = [Job(f"policy/{name}", _nbytes(parts), importer.writer(parts)) for name, parts in plan.items()]
            records = output.run(jobs, options.workers, "import")
            _complete(output, records, source, options)
            output.publish()
            return importer.values.count


@dataclass(frozen=True)
class _Part:
    """One record of a file: a piece of a row's parameter."""

    row: Row
    piece: Piece
    rectangle: Rectangle


class _Importer:
    def __init__(self, source: Path, reader: HFReader, arch: Architecture, options: ImportOptions) -> None:
        self.reader, self.arch, self.options = reader, arch, options
        self.values = FiniteValues(source, allowed=options.allow_non_finite)
        self.shapes = hf_shapes(arch)
        self.padded_vocab = padded_vocab_size(arch.vocab_size, options.vocab_pad_multiple, options.split.tensor)

    def files(self) -> dict[str, list[_Part]]:
        """The records of every file, by name."""
        plan: dict[str, list[_Part]] = {}
        last: dict[int, tuple[int, int]] = {}  # of every rank: its last file's number and size
        for row in checkpoint_rows(self.arch):
            for piece in pieces(row, self.arch, self.shapes, self.padded_vocab, self.options.split):
                part = _Part(row, piece, self._rectangle(row, piece))
                number, size = last.get(piece.rank, (0, 0))
                if size and size + part.rectangle.nbytes > FILE_BYTES:
                    number, size = number + 1, 0
                last[piece.rank] = number, size + part.rectangle.nbytes
                plan.setdefault(f"__{piece.rank}_{number}.distcp", []).append(part)
        return plan

    def writer(self, parts: list[_Part]) -> Any:
        def write(file: OutputFile) -> list[dict[str, Any]]:
            return [write_record(file, part.rectangle, self._blocks(part)) for part in parts]

        return write

    def _rectangle(self, row: Row, piece: Piece) -> Rectangle:
        where = piece.location
        columns = piece.columns or ((0, piece.shape[1]) if len(piece.shape) > 1 else None)
        low, high = zip(piece.rows, *([columns] if columns else []), strict=True)
        dtype = self.options.dtype or str(self.reader.dtype(row.hf[0])).removeprefix("torch.")
        return Rectangle(
            key=where.key,
            shape=where.counts + piece.shape,
            offsets=where.prefix + low,
            sizes=(1,) * len(where.prefix) + tuple(stop - start for start, stop in zip(low, high, strict=True)),
            dtype=dtype,
        )

    def _blocks(self, part: _Part) -> Iterator[Tensor]:
        """The elements of a piece in order, in the written type."""
        dtype = getattr(torch, part.rectangle.dtype)
        columns = part.piece.columns
        width = part.rectangle.sizes[-1] if len(part.piece.shape) > 1 else 1
        step = max(1, BLOCK_BYTES // (width * max(4, dtype.itemsize)))
        parameter = segments(part.row, self.arch, self.shapes, self.padded_vocab)
        for segment in cut(parameter, *part.piece.rows):
            for start in range(segment.start, segment.stop, step):
                stop = min(start + step, segment.stop)
                if segment.name is None:
                    yield torch.zeros(stop - start, width, dtype=dtype)
                else:
                    block = self.reader.read_rows(segment.name, start, stop, columns).to(dtype)
                    yield self.values.check(block, segment.name)


def _nbytes(parts: list[_Part]) -> int:
    return sum(part.rectangle.nbytes for part in parts)


def _complete(output: OutputDirectory, records: Mapping[str, list[dict[str, Any]]], source: Path, options: ImportOptions) -> None:
    """Writes what describes the weights, and the manifest of everything."""
    write_metadata(output.folder / "policy", {Path(name).name: entries for name, entries in records.items()})
    (output.folder / "hf").mkdir(exist_ok=True)
    for name, content in read_companions(source).items():
        path = output.folder / "hf" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    state = {"format": FORMAT, "kind": "imported", "source": str(source), "split": asdict(options.split), "dtype": options.dtype}
    (output.folder / "state.json").write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
    known = {name: {"bytes": record["bytes"], "sha256": record["sha256"]} for name, record in output.done.items()}
    write_manifest(output.folder, known, ignore=JOURNAL)


def _layout_problems(arch: Architecture, split: Split) -> list[str]:
    data = -(-split.expert // split.tensor)  # expert ranks are taken out of tensor x data
    sequence = split.tensor > 1  # which experts need, and which cuts no weight
    layout = ParallelConfig(tensor=split.tensor, pipeline=split.pipeline, expert=split.expert, data=data, sequence=sequence)
    return split_problems(arch, layout)


def _fingerprint(source: Path, options: ImportOptions) -> dict[str, Any]:
    files = {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in sorted(source.iterdir()) if path.is_file()}
    choices = {name: value for name, value in asdict(options).items() if name not in ("workers", "allow_non_finite")}
    return {"import": str(source.resolve()), "format": FORMAT, "options": choices, "files": files}
