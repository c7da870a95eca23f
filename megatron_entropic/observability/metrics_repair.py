"""Bringing a metrics.jsonl that several processes wrote at once back to the one history that a checkpoint resumes from.

Of processes that resumed from one checkpoint the last to start removed the others' later lines, so only its own history is without
gaps: every step once, each line after the line of the step before. Steps that come more than once outside it are the others'.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_entropic.system.atomic_files import write_atomically

_OF_THE_MACHINE = ("time/", "perf/")


@dataclass(frozen=True)
class Repair:
    """Result of a repair: `kept` lines of `found` (torn or unreadable ones included), `ambiguous` steps, and the copy of the old file.

    Of an ambiguous step there were several lines that say different things; the one kept is the first that follows the step before.
    """

    kept: int
    found: int
    ambiguous: tuple[int, ...]
    backup: Path | None

    def __str__(self) -> str:
        if self.backup is None:
            return f"metrics.jsonl is sound: {self.kept} steps"
        text = f"metrics.jsonl: {self.kept} of {self.found} lines kept; the file as it was: {self.backup}"
        if self.ambiguous:
            text += f"\nof {len(self.ambiguous)} steps ({_ranges(self.ambiguous)}) there were lines of different histories"
        return text


def repair_metrics(path: Path, saved_steps: int) -> Repair:
    """Rewrites `path` so that it holds one history, up to and including step `saved_steps` - 1 (all of it when that is 0).

    A file that is sound, and of which nothing is beyond repair, is left alone, whatever comes after those steps. Raises ValueError
    when no history in it leads up to the checkpoint.
    """
    lines = [(raw, _fields(raw)) for raw in path.read_bytes().split(b"\n") if raw]
    steps = [fields["step"] for _, fields in lines if fields is not None]
    if len(steps) == len(lines) and all(step > before for before, step in zip([-1, *steps], steps, strict=False)):
        return Repair(len(lines), len(lines), (), None)
    chain = _history(lines, saved_steps)
    if saved_steps and (not chain or lines[chain[-1]][1]["step"] != saved_steps - 1):  # type: ignore[index]  # chains have fields
        raise ValueError(f"{path}: no history in it leads to step {saved_steps - 1}, the checkpoint's last; resume from an older one")
    ambiguous = tuple(lines[index][1]["step"] for index in chain if _differs(lines, index))  # type: ignore[index]
    backup = write_atomically(_backup(path), path.read_bytes())
    write_atomically(path, b"".join(lines[index][0] + b"\n" for index in chain))
    return Repair(len(chain), len(lines), ambiguous, backup)


def _history(lines: list[tuple[bytes, dict[str, Any] | None]], saved_steps: int) -> list[int]:
    """Indices of the lines of one history: from its end backwards, each step's latest line before that of the step after it."""
    steps = [-1 if fields is None else fields["step"] for _, fields in lines]
    last = saved_steps - 1 if saved_steps else max(steps, default=-1)
    chain: list[int] = []
    end = len(lines)
    while candidates := [index for index in range(end) if 0 <= steps[index] <= last]:
        nearest = max(steps[index] for index in candidates)
        if not chain and nearest != last:
            break
        end = max(index for index in candidates if steps[index] == nearest)
        chain.append(end)
        last = nearest - 1
    return chain[::-1]


def _differs(lines: list[tuple[bytes, dict[str, Any] | None]], index: int) -> bool:
    """Whether another line of the same step says something else about training."""
    mine = _training(lines[index][1])
    return any(
        fields is not None and fields["step"] == mine["step"] and _training(fields) != mine
        for other, (_, fields) in enumerate(lines)
        if other != index
    )


def _training(fields: dict[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (fields or {}).items() if not name.startswith(_OF_THE_MACHINE)}


def _fields(raw: bytes) -> dict[str, Any] | None:
    """The line's fields; None for a torn or unreadable one."""
    try:
        fields = json.loads(raw)
    except ValueError:
        return None
    return fields if isinstance(fields, dict) and type(fields.get("step")) is int and fields["step"] >= 0 else None


def _backup(path: Path) -> Path:
    number = 1
    while (backup := path.with_name(f"{path.name}.before-repair-{number}")).exists():
        number += 1
    return backup


def _ranges(steps: tuple[int, ...]) -> str:
    shown = ", ".join(map(str, steps[:5]))
    return shown if len(steps) <= 5 else f"{shown}, ... {steps[-1]}"
