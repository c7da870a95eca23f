"""A distributed checkpoint seen as the Hugging Face tensors it can be read as: same questions and answers as hf.files.HFReader."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from megatron_entropic.conversion.distributed_reader import DistributedReader, StoredTensor
from megatron_entropic.conversion.keys import Location, alternative_locations, is_optimizer, master_of
from megatron_entropic.hf.architectures import Architecture
from megatron_entropic.hf.files import DTYPES
from megatron_entropic.hf.headers import CheckpointError
from megatron_entropic.hf.segments import segments
from megatron_entropic.hf.tables import Layout, Row, checkpoint_rows, hf_shapes


@dataclass(frozen=True)
class _Source:
    """Source of a Hugging Face tensor's rows: (first row there, how many), in the order they have here."""

    location: Location
    dtype: torch.dtype
    runs: tuple[tuple[int, int], ...]


class DistributedView:
    """The Hugging Face tensors of the distributed checkpoint in `folder`, in checkpoint order; a context manager.

    With `dtype`, tensors are cast to it; where it has more digits than the saved weights, the optimizer's float32 masters are
    read instead if the checkpoint has them. Raises one CheckpointError with a line for every problem: missing or truncated
    files, missing or misshapen parameters, weights that map nowhere.
    """

    def __init__(self, folder: Path, arch: Architecture, dtype: torch.dtype | None = None) -> None:
        self._arch, self._dtype = arch, dtype
        self._shapes = hf_shapes(arch)
        self._reader = DistributedReader(folder)
        self._masters = {weight: key for key in self._reader.tensors if (weight := master_of(key)) is not None}
        problems = self._reader.missing()
        self._sources = {name: source for row in checkpoint_rows(arch) for name, source in self._row(row, problems)}
        problems += self._unexpected()
        if problems:
            self.close()
            raise CheckpointError("\n".join([f"{folder}: {len(problems)} problem(s) in this checkpoint:", *problems]))
        for key in {source.location.key for source in self._sources.values()}:
            self._reader.locate(key)

    def names(self) -> tuple[str, ...]:
        """Names of all tensors, in checkpoint order."""
        return tuple(self._sources)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def dtype(self, name: str) -> torch.dtype:
        return self._sources[name].dtype

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` of a tensor. Threads may call this at once."""
        source = self._sources[name]
        parts = []
        here = 0
        for there, count in source.runs:
            low, high = max(start, here), min(stop, here + count)
            if low < high:
                first = there + low - here
                parts.append(self._reader.read_rows(source.location.key, source.location.prefix, first, first + high - low))
            here += count
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).to(source.dtype)

    def _row(self, row: Row, problems: list[str]) -> Iterator[tuple[str, _Source]]:
        found = self._find(row)
        if found is None:
            problems.append(f"{row.megatron} is missing, which {', '.join(row.hf)} would be made of")
            return
        where, stored = found
        rows_there = stored.shape[len(where.prefix)]
        parts = segments(row, self._arch, self._shapes, rows_there if row.layout is Layout.VOCABULARY else 0)
        wanted = (*where.counts, sum(part.stop - part.start for part in parts), *self._shapes[row.hf[0]][1:])
        if stored.shape != wanted:
            problems.append(f"{where.key} has shape {list(stored.shape)}, config.json asks for {list(wanted)}")
            return
        if stored.dtype not in DTYPES.values():
            problems.append(f"{where.key} has dtype {stored.dtype}, which a model's safetensors have not")
            return
        ends = list(itertools.accumulate(part.stop - part.start for part in parts))
        for name in row.hf:
            runs = [
                (end - (part.stop - part.start), part.stop - part.start)
                for end, part in zip(ends, parts, strict=True)
                if part.name == name
            ]
            yield name, _Source(where, self._dtype or stored.dtype, tuple(runs))

    def _find(self, row: Row) -> tuple[Location, StoredTensor] | None:
        for where in alternative_locations(row, self._arch):
            stored = self._reader.tensors.get(where.key)
            if stored is None:
                continue
            if where.key in self._masters and self._dtype and self._dtype.itemsize > stored.dtype.itemsize:
                master = self._masters[where.key]
                return replace(where, key=master), self._reader.tensors[master]
            return where, stored
        return None

    def _unexpected(self) -> list[str]:
        """Weights of the checkpoint that no row asks for."""
        known = {where.key for row in checkpoint_rows(self._arch) for where in alternative_locations(row, self._arch)}
        strangers = [key for key in self._reader.tensors if key not in known and not is_optimizer(key)]
        return [f"{key} {list(self._reader.tensors[key].shape)} maps to no tensor of a {self._arch.architecture}" for key in strangers]

    def close(self) -> None:
        """Closes the files; safe to call twice."""
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
