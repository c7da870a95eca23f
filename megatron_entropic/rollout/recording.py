"""Recorded rollouts: one zstd-compressed file a step, holding everything a replay of the run needs.

    rollouts/step-000012.safetensors.zst    the arrays of record_layout.py in one zstd frame with a checksum, so that a truncated or
                                            damaged file cannot pass for a whole one
    rollouts/step-000012.jsonl.zst          the same, as earlier versions recorded it (recording_jsonl.py)

The writer is `RolloutWriter`, the readers are `read_rollouts` and `recorded_steps`, the consumer is replay_engine.py.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from megatron_entropic.errors import ReportedError
from megatron_entropic.rollout.background_writer import BackgroundWriter
from megatron_entropic.rollout.frames import read_frame, write_frame
from megatron_entropic.rollout.record_layout import RecordedRollout as RecordedRollout
from megatron_entropic.rollout.record_layout import decoded, decoded_counts, encoded
from megatron_entropic.rollout.recording_jsonl import read_jsonl
from megatron_entropic.rollout.types import Rollout
from megatron_entropic.system.folder_lock import Fence
from megatron_entropic.tasks.task import Problem

_FILE_NAME = re.compile(r"step-(\d{6,})\.(safetensors|jsonl)\.zst")


class RecordingError(ReportedError, RuntimeError):
    """Rollouts could not be recorded; the message names the file."""


class RolloutWriter:
    """Records a run's rollouts under `folder` (made when missing). One process (rank 0) writes, as far as the `fence` lets it."""

    def __init__(self, folder: str | os.PathLike[str], fence: Fence | None = None) -> None:
        self.folder = Path(folder)
        self.fence = fence or Fence(self.folder, "")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._background = BackgroundWriter("recording")

    def begin(
        self,
        step: int,
        rollouts: Sequence[Rollout],
        problems: Mapping[int, Problem],
        rewards: Sequence[float],
        counts: Mapping[str, float] | None = None,
    ) -> None:
        """Has `write` done in a thread, once the step before is written. Raises what went wrong with that one."""
        self._background.begin(self.write, step, rollouts, problems, rewards, counts)

    def wait(self) -> None:
        """Returns once everything begun is on the disk. Raises what went wrong with it, once."""
        self._background.wait()

    def close(self) -> None:
        """As `wait`, and nothing can be begun any more. Safe to call twice."""
        self._background.close()

    def write(
        self,
        step: int,
        rollouts: Sequence[Rollout],
        problems: Mapping[int, Problem],
        rewards: Sequence[float],
        counts: Mapping[str, float] | None = None,
    ) -> Path:
        """Writes the file of `step` atomically, replacing an earlier one (a resumed run does its step again).

        `problems` maps prompt_index to its problem; `rewards[i]` belongs to `rollouts[i]`; `counts` is what scoring them
        counted, by metric. Log-probs and rewards are written so that they read back bit for bit. Raises ValueError naming the row
        for what could not be replayed, RecordingError naming the file for what the disk refuses.
        """
        self.fence.check()
        if len(rollouts) != len(rewards):
            raise ValueError(f"step {step}: {len(rollouts)} rollouts but {len(rewards)} rewards")
        path = self.folder / file_name(step)
        size, pieces = encoded(step, rollouts, problems, rewards, counts)
        try:
            write_frame(path, size, pieces)
            path.with_name(_old_name(step)).unlink(missing_ok=True)
        except OSError as error:
            raise RecordingError(f"{path}: the rollouts of step {step} cannot be recorded: {error.strerror or error}") from error
        return path


def file_name(step: int) -> str:
    """Name of the file that holds `step`."""
    return f"step-{step:06d}.safetensors.zst"


def _old_name(step: int) -> str:
    return f"step-{step:06d}.jsonl.zst"


def recorded_file(folder: str | os.PathLike[str], step: int) -> Path:
    """The file that holds `step`, or would."""
    old = Path(folder) / _old_name(step)
    new = Path(folder) / file_name(step)
    return old if old.is_file() and not new.is_file() else new


def recorded_steps(folder: str | os.PathLike[str]) -> list[int]:
    """The steps recorded under `folder`, ascending. Raises FileNotFoundError when there is no such folder."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of recorded rollouts (it is RUN_DIR/rollouts)")
    matches = (_FILE_NAME.fullmatch(entry.name) for entry in folder.iterdir())
    return sorted({int(match[1]) for match in matches if match})


def read_rollouts(folder: str | os.PathLike[str], step: int) -> list[RecordedRollout]:
    """The rollouts of `step` in the order they were recorded.

    Raises FileNotFoundError for a step that is not there, naming the file and the steps that are; ValueError for a
    truncated, damaged or malformed file, naming the file and the field.
    """
    path = recorded_file(folder, step)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: step {step} is not recorded; {_describe_range(recorded_steps(folder))}")
    records = read_jsonl(path) if path.name == _old_name(step) else decoded(str(path), read_frame(path))
    for number, record in enumerate(records, start=1):
        if record.step != step:
            raise ValueError(f"{path}, line {number}: field step is {record.step}, the file's name says {step}")
    return records


def read_counts(folder: str | os.PathLike[str], step: int) -> dict[str, float]:
    """Counts, and means of parts, of scoring the recorded rollouts of `step`, by metric; empty for what earlier versions recorded.

    Raises as read_rollouts.
    """
    path = recorded_file(folder, step)
    return {} if path.name == _old_name(step) else decoded_counts(str(path), read_frame(path))


def _describe_range(steps: Sequence[int]) -> str:
    if not steps:
        return "the folder holds no recorded steps"
    gaps = "" if steps[-1] - steps[0] + 1 == len(steps) else f", with {steps[-1] - steps[0] + 1 - len(steps)} missing between"
    return f"the folder holds steps {steps[0]} to {steps[-1]}{gaps}"
