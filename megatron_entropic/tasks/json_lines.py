"""The lines of a JSON Lines file as data sets come: UTF-8 with or without a mark, any line end, gzipped or not.

Everything that is not such a file is named for what it is, with the way out where there is one.
"""

import decimal
import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_entropic.tasks.row_values import BadRowError

_GZIP = b"\x1f\x8b"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_OTHERS = {
    b"PAR1": "a Parquet file, which task.name=data reads; or: pandas.read_parquet(FILE).to_json(OUT, orient='records', lines=True)",
    b"ARROW1": "an Arrow file, which task.name=data reads; or: datasets.Dataset.from_file(FILE).to_json(OUT)",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; only gzip is read: zstd -d FILE",
    b"BZh": "compressed by bzip2; only gzip is read: bunzip2 FILE",
    b"\xfd7zXZ": "compressed by xz; only gzip is read: unxz FILE",
    b"PK\x03\x04": "a zip archive; unpack it",
    b"\xff\xfe": "UTF-16; convert it: iconv -f UTF-16 -t UTF-8 FILE",
    b"\xfe\xff": "UTF-16; convert it: iconv -f UTF-16 -t UTF-8 FILE",
    b"{\0": "UTF-16; convert it: iconv -f UTF-16LE -t UTF-8 FILE",
    b"\0{": "UTF-16; convert it: iconv -f UTF-16BE -t UTF-8 FILE",
    b"[": "a JSON array; one object a line is needed: jq -c '.[]' FILE",
    b"{\n": "one JSON object over several lines; one object a line is needed: jq -c . FILE",
    b"{\r\n": "one JSON object over several lines; one object a line is needed: jq -c . FILE",
}
"""First bytes of files that are not JSON Lines, and their formats."""


@dataclass(frozen=True, slots=True)
class JsonLine:
    """A line that is not blank; `number` counts from 1, blank ones included."""

    number: int
    content: bytes

    def fields(self) -> dict[str, Any]:
        """The object it holds, with numbers as they are written. Raises BadRowError."""
        try:
            values = _DECODER.decode(self.content.decode("utf-8"))
        except BadRowError:
            raise
        except UnicodeDecodeError as problem:
            at = f"byte 0x{self.content[problem.start]:02x} at column {problem.start + 1}"
            raise BadRowError(f"not UTF-8 ({at}); if the file is Latin-1: iconv -f LATIN1 -t UTF-8 FILE") from problem
        except json.JSONDecodeError as problem:
            raise BadRowError(f"not valid JSON: {problem.msg} at column {problem.pos + 1}") from problem
        except (ValueError, RecursionError) as problem:
            raise BadRowError(f"not valid JSON: {str(problem)[:100]}") from problem
        if not isinstance(values, dict):
            raise BadRowError("not a JSON object of fields such as prompt and answer")
        return values


def json_lines(path: Path) -> Iterator[JsonLine]:
    """The lines of the file that are not blank. Raises ValueError naming a path or file that holds no such lines."""
    if path.is_dir():
        raise ValueError(f"{path}: a folder; name one file of it")
    if not path.is_file():
        raise ValueError(f"{path}: no such file; it must be JSON Lines of problems with their answers")
    with path.open("rb") as raw:
        head = raw.read(6)
    if head.startswith(_GZIP):
        with gzip.open(path) as file:
            try:
                yield from _lines(path, file)
            except (EOFError, gzip.BadGzipFile, zlib.error) as problem:
                raise ValueError(f"{path}: a damaged gzip file ({problem}); copy it again") from problem
    else:
        with path.open("rb") as file:
            yield from _lines(path, file)


def refuse_other_format(path: Path, first_line: bytes) -> None:
    """Raises ValueError naming what a file is whose first line is that of no JSON Lines."""
    for beginning, kind in _OTHERS.items():
        if first_line.startswith(beginning):
            raise ValueError(f"{path}: {kind}")


def _lines(path: Path, file: Any) -> Iterator[JsonLine]:
    for number, content in enumerate(file, start=1):
        if number == 1:
            content = content.removeprefix(_BYTE_ORDER_MARK)
            refuse_other_format(path, content)
        if content.strip():
            yield JsonLine(number, content)


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object. Raises BadRowError for a field that is there twice: which of the two is meant, nobody can tell."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise BadRowError(f"field {next(name for name in names if names.count(name) > 1)} is there twice")
    return fields


def _not_json(constant: str) -> Any:
    raise BadRowError(f"{constant} is no JSON value")


_DECODER = json.JSONDecoder(object_pairs_hook=_fields, parse_float=decimal.Decimal, parse_constant=_not_json)
