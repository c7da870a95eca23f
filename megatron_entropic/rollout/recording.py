"""Recorded rollouts: one zstd-compressed JSONL file a step, holding everything a replay of the run needs.

    rollouts/step-000012.jsonl.zst      one line a rollout, ordered by prompt, then sample; UTF-8 JSON, one zstd frame
                                        with a checksum, so that a truncated or damaged file cannot pass for a whole one

The writer is `RolloutWriter`, the readers are `read_rollouts` and `recorded_steps`, the consumer is replay.py.
"""

import io
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

from megatron_entropic.rollout.types import Rollout
from megatron_entropic.system.folder_lock import Fence
from megatron_entropic.tasks.task import Problem

_FILE_NAME = re.compile(r"step-(\d{6,})\.jsonl\.zst")
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


@dataclass(frozen=True)
class RecordedRollout:
    """A rollout as it was trained on: `step` is the loop's step (from 0), `reward` the task's score of it in [0, 1]."""

    step: int
    rollout: Rollout
    problem: Problem
    reward: float


class RolloutWriter:
    """Records a run's rollouts under `folder` (made when missing). One process (rank 0) writes, as far as the `fence` lets it."""

    def __init__(self, folder: str | os.PathLike[str], fence: Fence | None = None) -> None:
        self.folder = Path(folder)
        self.fence = fence or Fence(self.folder, "")
        self.folder.mkdir(parents=True, exist_ok=True)

    def write(self, step: int, rollouts: Sequence[Rollout], problems: Mapping[int, Problem], rewards: Sequence[float]) -> Path:
        """Writes the file of `step` whole or not at all, replacing an earlier one (a resumed run does its step again).

        `problems` maps prompt_index to its problem; `rewards[i]` belongs to `rollouts[i]`. Log-probs and rewards are
        written so that they read back bit for bit. Raises ValueError naming the row for what could not be replayed:
        non-finite numbers, lengths that differ, a prompt without a problem, problem data that JSON cannot hold.
        """
        self.fence.check()
        if len(rollouts) != len(rewards):
            raise ValueError(f"step {step}: {len(rollouts)} rollouts but {len(rewards)} rewards")
        path = self.folder / file_name(step)
        temporary = path.with_name(f".{path.name}.tmp")
        with temporary.open("wb") as file:
            compressor = zstandard.ZstdCompressor(level=3, write_checksum=True)
            with compressor.stream_writer(file, closefd=False) as stream:
                for row, (rollout, reward) in enumerate(zip(rollouts, rewards, strict=True)):
                    stream.write(_encode(f"step {step}, row {row}", step, rollout, problems, reward))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        return path


def file_name(step: int) -> str:
    """Name of the file that holds `step`."""
    return f"step-{step:06d}.jsonl.zst"


def recorded_steps(folder: str | os.PathLike[str]) -> list[int]:
    """The steps recorded under `folder`, ascending. Raises FileNotFoundError when there is no such folder."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of recorded rollouts (it is RUN_DIR/rollouts)")
    matches = (_FILE_NAME.fullmatch(entry.name) for entry in folder.iterdir())
    return sorted(int(match[1]) for match in matches if match)


def read_rollouts(folder: str | os.PathLike[str], step: int) -> list[RecordedRollout]:
    """The rollouts of `step` in the order they were recorded.

    Raises FileNotFoundError for a step that is not there, naming the file and the steps that are; ValueError for a
    truncated, damaged or malformed file, naming the file, the line and the field.
    """
    path = Path(folder) / file_name(step)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: step {step} is not recorded; {_describe_range(recorded_steps(folder))}")
    records = [_decode(f"{path}, line {number}", line) for number, line in enumerate(_decompressed_lines(path), start=1)]
    for number, record in enumerate(records, start=1):
        if record.step != step:
            raise ValueError(f"{path}, line {number}: field step is {record.step}, the file's name says {step}")
    return records


def _describe_range(steps: Sequence[int]) -> str:
    if not steps:
        return "the folder holds no recorded steps"
    gaps = "" if steps[-1] - steps[0] + 1 == len(steps) else f", with {steps[-1] - steps[0] + 1 - len(steps)} missing between"
    return f"the folder holds steps {steps[0]} to {steps[-1]}{gaps}"


def _encode(where: str, step: int, rollout: Rollout, problems: Mapping[int, Problem], reward: float) -> bytes:
    if rollout.prompt_index not in problems:
        raise ValueError(f"{where}: no problem for prompt_index {rollout.prompt_index}")
    if len(rollout.log_probs) != len(rollout.response_ids):
        raise ValueError(f"{where}: {len(rollout.log_probs)} log_probs for {len(rollout.response_ids)} response_ids")
    for name, values in (("log_probs", rollout.log_probs), ("reward", (reward,))):
        bad = next((value for value in values if not math.isfinite(value)), None)
        if bad is not None:
            raise ValueError(f"{where}, server {rollout.server}: field {name} holds {bad}; it must be finite")
    problem = problems[rollout.prompt_index]
    line: dict[str, Any] = {"step": step}
    line |= {name: getattr(rollout, name) for name in _ROLLOUT_FIELDS}
    line |= {"problem": {"prompt": problem.prompt, "data": dict(problem.data)}, "reward": reward}
    try:
        return (json.dumps(line, allow_nan=False) + "\n").encode()
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: prompt_index {rollout.prompt_index} cannot be written as JSON: {error}") from error


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
        name: tuple(fields[name]) if _LINE_FIELDS[name] in ("ints", "floats") else fields[name] for name in _ROLLOUT_FIELDS
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
