"""Reading rollouts that earlier versions recorded: one zstd-compressed JSONL file a step, step-000012.jsonl.zst.

One line a rollout, ordered by prompt, then sample; UTF-8 JSON, one zstd frame with a checksum.
"""

import io
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from megatron_entropic.rollout.record_layout import RecordedRollout
from megatron_entropic.rollout.types import Rollout
from megatron_entropic.tasks.task import Problem

_ROLLOUT_FIELDS: dict[str, str] = {
    "prompt_index": "int",
    "sample_index": "int",
    "prompt_ids": "ints",
    "response_ids": "ints",
    "log_probs": "floats",
    "text": "str",
    "finish_reason": "str",
    "first_version": "int",
    "last_version": "int",
    "server": "str",
}
_LINE_FIELDS: dict[str, str] = {"step": "int", **_ROLLOUT_FIELDS, "problem": "problem", "reward": "float"}
_DTYPES: dict[str, Any] = {"ints": np.int32, "floats": np.float32}


def read_jsonl(path: Path) -> list[RecordedRollout]:
    """The rollouts of a file in their order. Raises ValueError naming the file, the line and the field of what is wrong."""
    return [_decode(f"{path}, line {number}", line) for number, line in enumerate(_decompressed_lines(path), start=1)]


def _decompressed_lines(path: Path) -> Iterator[bytes]:
    """Lines of a file that is exactly one whole zstd frame. Raises ValueError when it is not, after the last good line."""
    decompressor = zstandard.ZstdDecompressor().decompressobj()
    pending = b""
    with path.open("rb") as file:
        while chunk := file.read(io.DEFAULT_BUFFER_SIZE * 8):
            if decompressor.eof:
                raise ValueError(f"{path}: bytes after the end of the zstd frame; copy the file again")
            try:
                *lines, pending = (pending + decompressor.decompress(chunk)).split(b"\n")
            except zstandard.ZstdError as error:
                raise ValueError(f"{path}: damaged file ({error}); copy it again or record the step again") from error
            yield from lines
    if not decompressor.eof or decompressor.unused_data or pending:
        raise ValueError(f"{path}: truncated or overlong file; copy it again or record the step again")


def _decode(where: str, line: bytes) -> RecordedRollout:
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: not JSON ({error})") from error
    if not isinstance(fields, dict) or fields.keys() != _LINE_FIELDS.keys():
        found = fields.keys() if isinstance(fields, dict) else set()
        missing, unknown = sorted(_LINE_FIELDS.keys() - found), sorted(found - _LINE_FIELDS.keys())
        raise ValueError(f"{where}: not a recorded rollout; missing fields {missing}, unknown fields {unknown}")
    for name, kind in _LINE_FIELDS.items():
        if not _IS[kind](fields[name]):
            raise ValueError(f"{where}: field {name} is not {_ARTICLE[kind]}: {str(fields[name])[:80]}")
    if len(fields["log_probs"]) != len(fields["response_ids"]):
        raise ValueError(f"{where}: {len(fields['log_probs'])} log_probs for {len(fields['response_ids'])} response_ids")
    values: dict[str, Any] = {
        name: np.array(fields[name], dtype=_DTYPES[kind]) if kind in _DTYPES else fields[name] for name, kind in _ROLLOUT_FIELDS.items()
    }
    problem = Problem(prompt=fields["problem"]["prompt"], data=fields["problem"]["data"])
    return RecordedRollout(step=fields["step"], rollout=Rollout(**values), problem=problem, reward=fields["reward"])


def _is_int(value: object) -> bool:
    return type(value) is int


def _is_float(value: object) -> bool:
    return _is_int(value) or (isinstance(value, float) and math.isfinite(value))


def _is_problem(value: object) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"prompt", "data"}
        and isinstance(value["prompt"], str)
        and isinstance(value["data"], dict)
    )


_IS: dict[str, Callable[[Any], bool]] = {
    "int": _is_int,
    "float": _is_float,
    "str": lambda value: isinstance(value, str),
    "ints": lambda value: isinstance(value, list) and all(map(_is_int, value)),
    "floats": lambda value: isinstance(value, list) and all(map(_is_float, value)),
    "problem": _is_problem,
}
_ARTICLE = {
    "int": "an integer",
    "float": "a finite number",
    "str": "a text",
    "ints": "a list of integers",
    "floats": "a list of finite numbers",
    "problem": "an object with prompt (text) and data (object)",
}
