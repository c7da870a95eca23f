"""Rows of one file, mapped into memory: opening makes no Python object for a row, and a row is read when it is asked for."""

import io
import json
import mmap
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from megatron_entropic.tasks.json_lines import JsonLine, refuse_other_format
from megatron_entropic.tasks.row_values import BadRowError

if TYPE_CHECKING:
    import pyarrow as pa

_CHUNK_BYTES = 1 << 24
_BATCH_ROWS = 4096
_ROWS_OF_NAMES = 1000
_WHITE = np.frombuffer(b" \t\r\n\x0b\x0c", np.uint8)


class Store(Protocol):
    """Rows 0 ... len - 1 of `path`."""

    path: Path

    def __len__(self) -> int: ...

    def row(self, index: int) -> dict[str, Any]:
        """The fields of a row. Raises BadRowError."""
        ...

    def number(self, index: int) -> int:
        """Line or row, counted from 1 as people count."""
        ...

    def where(self, index: int) -> str:
        """File and line, or row, for a message."""
        ...

    def names(self) -> list[str]:
        """Names of the fields that rows have; of JSON Lines those of the first rows."""
        ...

    def scan(self, fields: Sequence[str] | None) -> Iterator[dict[str, Any]]:
        """Every row in order, of its fields at least those named; None: all. Raises ValueError naming the first bad row."""
        ...


class JsonLinesStore:
    """JSON Lines: where lines begin and end is all that is kept of them. Numbers are read as they are written."""

    def __init__(self, path: Path, file: io.BufferedIOBase) -> None:
        self.path = path
        size = file.seek(0, io.SEEK_END)
        if not size:
            raise ValueError(f"{path}: is empty")
        self._content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._first = 3 if self._content[:3] == b"\xef\xbb\xbf" else 0
        end = self._content.find(b"\n") + 1 or size
        refuse_other_format(path, self._content[self._first : min(end, _CHUNK_BYTES)])
        bytes_ = np.frombuffer(self._content, np.uint8)
        ends = _line_ends(bytes_)
        starts = np.concatenate(([self._first], ends[:-1])).astype(np.int64)
        self._lines = _not_blank(self._content, bytes_, starts, ends)
        self._starts, self._ends = starts[self._lines], ends[self._lines]
        if not len(self._lines):
            raise ValueError(f"{path}: holds no rows")
        self._content.madvise(mmap.MADV_DONTNEED)  # what was read to find the lines need not stay

    def __len__(self) -> int:
        return len(self._lines)

    def row(self, index: int) -> dict[str, Any]:
        return JsonLine(self.number(index), self._line(index)).fields()

    def number(self, index: int) -> int:
        return int(self._lines[index]) + 1

    def where(self, index: int) -> str:
        return f"{self.path}, line {self.number(index)}"

    def names(self) -> list[str]:
        return list(dict.fromkeys(name for row in islice(self.scan(None), _ROWS_OF_NAMES) for name in row))

    def scan(self, fields: Sequence[str] | None) -> Iterator[dict[str, Any]]:
        for index in range(len(self)):
            try:
                row = json.loads(self._line(index))
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                try:
                    row = self.row(index)  # says what is wrong with it
                except BadRowError as problem:
                    raise ValueError(f"{self.where(index)}: {problem}") from problem
            yield row

    def _line(self, index: int) -> bytes:
        return self._content[self._starts[index] : self._ends[index]]


def _line_ends(bytes_: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """The offset behind each line's end."""
    found = []
    for start in range(0, len(bytes_), _CHUNK_BYTES):
        found.append(np.flatnonzero(bytes_[start : start + _CHUNK_BYTES] == ord("\n")) + (start + 1))
    ends = np.concatenate(found).astype(np.int64)
    if not len(ends) or ends[-1] != len(bytes_):
        ends = np.append(ends, len(bytes_))
    return ends


def _not_blank(
    content: mmap.mmap, bytes_: npt.NDArray[np.uint8], starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """The lines that hold more than white space."""
    filled = ends > starts
    doubtful = np.flatnonzero(filled & np.isin(bytes_[np.minimum(starts, len(bytes_) - 1)], _WHITE))
    for line in doubtful.tolist():
        filled[line] = bool(content[starts[line] : ends[line]].strip())
    return np.flatnonzero(filled)


class ArrowStore:
    """Record batches of Arrow, wherever they lie."""

    def __init__(self, path: Path, batches: "Sequence[pa.RecordBatch]") -> None:
        self.path = path
        self._batches = [batch for batch in batches if batch.num_rows]
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)])
        if not len(self):
            raise ValueError(f"{path}: holds no rows")

    def __len__(self) -> int:
        return int(self._starts[-1])

    def row(self, index: int) -> dict[str, Any]:
        batch = int(np.searchsorted(self._starts, index, side="right")) - 1
        try:
            rows: list[dict[str, Any]] = self._batches[batch].slice(index - int(self._starts[batch]), 1).to_pylist()
        except (ValueError, UnicodeDecodeError, ArithmeticError) as problem:
            raise BadRowError(f"cannot be read: {problem}") from problem
        return rows[0]

    def number(self, index: int) -> int:
        return index + 1

    def where(self, index: int) -> str:
        return f"{self.path}, row {self.number(index)}"

    def names(self) -> list[str]:
        return list(self._batches[0].schema.names)

    def scan(self, fields: Sequence[str] | None) -> Iterator[dict[str, Any]]:
        done = 0
        for batch in self._batches:
            known = batch.schema.names
            part = batch if fields is None else batch.select([name for name in known if name in fields])
            for start in range(0, batch.num_rows, _BATCH_ROWS):
                try:
                    yield from part.slice(start, _BATCH_ROWS).to_pylist()
                except (ValueError, UnicodeDecodeError, ArithmeticError) as problem:
                    raise ValueError(f"{self.path}, from row {done + start + 1} on: cannot be read: {problem}") from problem
            done += batch.num_rows


class JoinedStore:
    """The stores of a folder's files, one after the other."""

    def __init__(self, path: Path, stores: Sequence[Store]) -> None:
        self.path = path
        self._stores = stores
        self._starts = np.cumsum([0, *map(len, stores)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def row(self, index: int) -> dict[str, Any]:
        store, at = self._find(index)
        return store.row(at)

    def number(self, index: int) -> int:
        return index + 1

    def where(self, index: int) -> str:
        store, at = self._find(index)
        return store.where(at)

    def names(self) -> list[str]:
        return list(dict.fromkeys(name for store in self._stores for name in store.names()))

    def scan(self, fields: Sequence[str] | None) -> Iterator[dict[str, Any]]:
        for store in self._stores:
            yield from store.scan(fields)

    def _find(self, index: int) -> tuple[Store, int]:
        store = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._stores[store], index - int(self._starts[store])
