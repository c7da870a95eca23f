"""Reads what W&B wrote offline: a log of checksummed records in blocks, each a protobuf message."""

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BLOCK, _HEADER, _START = 32768, 7, 7


def read_records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file. A last one that a kill tore off is left out."""
    from wandb.proto import wandb_internal_pb2

    data = path.read_bytes()
    assert data[:4] == b":W&B", data[:_START]
    position, whole = _START, b""
    while position + _HEADER <= len(data):
        if (left := _BLOCK - position % _BLOCK) < _HEADER:
            position += left
            continue
        checksum, length, kind = struct.unpack("<IHB", data[position : position + _HEADER])
        body = data[position + _HEADER : position + _HEADER + length]
        if len(body) < length:
            return
        assert checksum == zlib.crc32(bytes([kind]) + body), f"{path}: offset {position}"
        position += _HEADER + length
        whole = body if kind in (1, 2) else whole + body
        if kind in (1, 4):
            yield wandb_internal_pb2.Record.FromString(whole)


def read_runs(run_dir: Path) -> list["WandbFile"]:
    """The offline folders of a run, in the order of their starts."""
    return [WandbFile(path) for path in sorted((run_dir / "wandb").glob("offline-run-*/run-*.wandb"))]


class WandbFile:
    """What one start of a run gave W&B."""

    def __init__(self, path: Path) -> None:
        self.records = list(read_records(path))
        self.run_id = path.stem.removeprefix("run-")
        self.folder = path.parent

    def of(self, kind: str) -> list[Any]:
        """The records of a kind."""
        return [getattr(record, kind) for record in self.records if record.WhichOneof("record_type") == kind]

    @property
    def history(self) -> list[dict[str, Any]]:
        """Metrics, a mapping a step."""
        return [_items(history.item) for history in self.of("history")]

    @property
    def config(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for config in self.of("config"):
            found |= _items(config.update)
        return found

    @property
    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for summary in self.of("summary"):
            found |= _items(summary.update)
        return found

    def table(self, entry: dict[str, Any]) -> list[dict[str, Any]]:
        """The rows of a table that the history names."""
        table = json.loads((self.folder / "files" / entry["path"]).read_text())
        return [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]


def _items(items: Any) -> dict[str, Any]:
    """By name, with / between nested names that are no names of metrics themselves."""
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
