"""The record of rollout.record_tokens: one file a step beside its rollouts, with what its updates did with each response token.

    rollouts/step-000012.tokens.safetensors.zst    safetensors in one zstd frame with a checksum

Shapes: B rollouts, in the order of the step's record, N response tokens.

    response_offsets                               int64 [B + 1]: borders of each rollout's tokens
    entropy, clamped_entropy (where measured),     float32 [N]: TOKEN_VALUES of policy/token_values.py
    log_prob, weight, plain_weight, actuator
    update                                         int64 [B]: which of the step's updates trained on the rollout, from 0
    metadata                                       format, step, ids (a checksum of the response ids, which ties it to its rollouts),
                                                   updates (JSON: the coefficients of each, and whether it was applied)
"""

import json
import os
import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from megatron_entropic.rollout.background_writer import BackgroundWriter
from megatron_entropic.rollout.frames import read_frame, write_frame
from megatron_entropic.rollout.recording import RecordingError
from megatron_entropic.rollout.types import FloatArray, Rollout
from megatron_entropic.system.folder_lock import Fence

if TYPE_CHECKING:  # readers do without torch
    from megatron_entropic.policy.update_stats import UpdateStats

FORMAT = "megatron_entropic tokens 1"
_FILE_NAME = re.compile(r"step-(\d{6,})\.tokens\.safetensors\.zst")


@dataclass(frozen=True)
class RecordedTokens:
    """Of a step: `values[name][i]` are those of the tokens of rollout i; `updates[number]` tells the coefficients of an update."""

    step: int
    values: Mapping[str, Sequence[FloatArray]]
    update: Sequence[int]
    updates: Sequence[Mapping[str, Any]]


class TokenWriter:
    """Records under `folder`, which exists, as far as the `fence` lets it. One process (rank 0) writes."""

    def __init__(self, folder: Path, fence: Fence) -> None:
        self.folder = folder
        self.fence = fence
        self._background = BackgroundWriter("recording tokens")

    def begin(self, step: int, rollouts: Sequence[Rollout], updates: "Sequence[UpdateStats]") -> None:
        """Has `write` done in a thread, once the step before is written. Raises what went wrong with that one."""
        self._background.begin(self.write, step, rollouts, updates)

    def wait(self) -> None:
        """Returns once everything begun is on the disk. Raises what went wrong with it, once."""
        self._background.wait()

    def close(self) -> None:
        """As `wait`, and nothing can be begun any more. Safe to call twice."""
        self._background.close()

    def write(self, step: int, rollouts: Sequence[Rollout], updates: "Sequence[UpdateStats]") -> Path:
        """Writes the file of `step` atomically. Every update has `tokens`. Raises RecordingError naming the file."""
        self.fence.check()
        path = self.folder / token_file_name(step)
        content = _encoded(step, rollouts, updates)
        try:
            write_frame(path, len(content), [content])
        except OSError as error:
            raise RecordingError(f"{path}: the tokens of step {step} cannot be recorded: {error.strerror or error}") from error
        return path


def token_file_name(step: int) -> str:
    """Name of the file that holds the tokens of `step`."""
    return f"step-{step:06d}.tokens.safetensors.zst"


def forget_tokens(folder: Path, first_step: int) -> None:
    """Removes what was recorded of steps from `first_step` on, which a resumed run does again."""
    for path in folder.iterdir():
        if (match := _FILE_NAME.fullmatch(path.name)) and int(match[1]) >= first_step:
            path.unlink(missing_ok=True)


def read_tokens(folder: str | os.PathLike[str], step: int, rollouts: Sequence[Rollout]) -> RecordedTokens | None:
    """The tokens of `step`, whose rollouts are given; None where they were not recorded.

    Raises ValueError naming the file when it is damaged, malformed, or belongs to other rollouts.
    """
    path = Path(folder) / token_file_name(step)
    if not path.is_file():
        return None
    content = read_frame(path)
    try:
        found = _decoded(content, step, rollouts)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, struct.error) as error:
        raise ValueError(f"{path}: not a record of these rollouts' tokens ({type(error).__name__}: {error})") from error
    return found


def _encoded(step: int, rollouts: Sequence[Rollout], updates: "Sequence[UpdateStats]") -> bytes:
    from safetensors.numpy import save

    tokens = [update.tokens for update in updates if update.tokens is not None]
    per_update = len(rollouts) // len(updates)
    arrays: dict[str, npt.NDArray[Any]] = {
        "response_offsets": np.cumsum([0, *(len(rollout.response_ids) for rollout in rollouts)], dtype=np.int64),
        "update": np.repeat(np.arange(len(updates), dtype=np.int64), per_update),
        **{name: np.concatenate([values[name] for values in tokens]) for name in tokens[0]},
    }
    metadata = {"format": FORMAT, "step": str(step), "ids": _checksum(rollouts)}
    content: bytes = save(arrays, metadata | {"updates": json.dumps([_told(update) for update in updates])})
    return content


def _told(update: "UpdateStats") -> dict[str, Any]:
    given = update.coefficients
    numbers = {name: getattr(given, name) for name in ("alpha", "bonus", "entropy_bonus", "positive_weight")}
    return numbers | {"phase": str(given.phase), "applied": update.applied}


def _checksum(rollouts: Sequence[Rollout]) -> str:
    checksum = 0
    for rollout in rollouts:
        checksum = zlib.crc32(np.ascontiguousarray(rollout.response_ids, dtype="<i4").data, checksum)
    return f"{checksum:08x}"


def _decoded(content: bytes, step: int, rollouts: Sequence[Rollout]) -> RecordedTokens:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        arrays = load(content)
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    (length,) = struct.unpack_from("<Q", content)
    metadata = json.loads(content[8 : 8 + length])["__metadata__"]
    if metadata["format"] != FORMAT or metadata["step"] != str(step):
        raise ValueError(f"format {metadata['format']!r} of step {metadata['step']}; this version reads {FORMAT!r}, of step {step}")
    offsets = arrays.pop("response_offsets")
    lengths = [len(rollout.response_ids) for rollout in rollouts]
    if metadata["ids"] != _checksum(rollouts) or np.diff(offsets).tolist() != lengths:
        raise ValueError("the response tokens are others: these rollouts were recorded at another time")
    update, updates = arrays.pop("update").tolist(), json.loads(metadata["updates"])
    if len(update) != len(rollouts) or not all(isinstance(told, dict) for told in updates):
        raise ValueError("field update does not fit the rollouts")
    if bad := [name for name, values in arrays.items() if values.dtype != np.float32 or values.shape != (sum(lengths),)]:
        raise ValueError(f"field {bad[0]} is not one float32 a token")
    cut = {name: np.split(values, offsets[1:-1]) for name, values in arrays.items()}
    return RecordedTokens(step, cut, update, updates)
