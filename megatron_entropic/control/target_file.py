"""RUN_DIR/target.json: the entropy target that a user asks of a running run.

    {"target_entropy": 0.7, "asked_at": "2026-02-03T04:05:06+00:00"}            null instead of a number: the schedule's again

`megatron-entropic target` writes it atomically. Rank 0 of the run looks at it once per step and hands what is new to
all ranks with the next reduction of the control sums, so that every controller changes its target in the same update.
"""

import json
import logging
import math
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from megatron_entropic.control import Controller
from megatron_entropic.errors import ReportedError
from megatron_entropic.system.atomic_files import write_atomically

logger = logging.getLogger(__name__)

NAME = "target.json"
SCHEDULE = math.nan
"""As a requested target: the schedule's again."""
_FIELDS = {"target_entropy", "asked_at"}
_MAX_BYTES = 4096


class TargetError(ReportedError, ValueError):
    """A target cannot be asked for, or the file with one cannot be used."""


@dataclass(frozen=True)
class AskedTarget:
    """Content of a target file: a target in nats, or None for the schedule's; when it was asked for, as text."""

    target_entropy: float | None
    asked_at: str = ""


def write_target(run_dir: Path, target: float | None) -> Path:
    """Asks the run for `target` nats, or for its schedule's target again (None); returns the file. Raises TargetError."""
    if target is not None and not math.isfinite(target):
        raise TargetError(f"target entropy {target}: must be a finite number of nats")
    content = {"target_entropy": target, "asked_at": datetime.now(UTC).isoformat(timespec="seconds")}
    return write_atomically(run_dir / NAME, (json.dumps(content) + "\n").encode())


def read_target(path: Path) -> AskedTarget | None:
    """The file's content; None when there is no file. Raises TargetError naming the file and what is wrong with it."""
    content = _content(path)
    return None if content is None else _parse(path, content)


class TargetFile:
    """The run's side: tells of each change of the file once. Only rank 0 reads."""

    def __init__(self, run_dir: Path, *, rank: int) -> None:
        self.path = run_dir / NAME
        self._reads = rank == 0
        self._seen: bytes | None = None
        self._problem: str | None = None

    def poll(self, controller: Controller) -> float | None:
        """The target in nats, or SCHEDULE, that the file asks for since it last changed; None when nothing is new.

        The change is logged. A file that cannot be used is one warning, and the run continues with the target that it has.
        """
        if not self._reads:
            return None
        try:
            content = _content(self.path)
            if content is None or content == self._seen:
                return None
            self._seen, self._problem = content, None
            asked = _parse(self.path, content).target_entropy
        except TargetError as error:
            if str(error) != self._problem:
                logger.warning("%s; the entropy target stays as it is", error)
            self._problem = str(error)
            return None
        before = controller.report().get("target_entropy")
        if before is None:
            logger.warning("%s: the controller of this run has no entropy target; nothing changes", self.path)
            return None
        after = "the schedule's" if asked is None else f"{asked:g}"
        logger.info("entropy target %g -> %s, asked for in %s", before, after, self.path)
        return SCHEDULE if asked is None else asked


def _content(path: Path) -> bytes | None:
    """The bytes of the file; None when there is none. Raises TargetError when it cannot be read, or is far too large."""
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise TargetError(f"{path}: cannot be read: {error.strerror}") from None
    if len(content) > _MAX_BYTES:
        raise TargetError(f"{path}: is larger than {_MAX_BYTES} bytes")
    return content


def _parse(path: Path, content: bytes) -> AskedTarget:
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise TargetError(f"{path}: is not JSON ({error})") from None
    if not isinstance(fields, dict) or "target_entropy" not in fields or not fields.keys() <= _FIELDS:
        raise TargetError(f'{path}: must be {{"target_entropy": NATS}}; `megatron-entropic target` writes it')
    target = fields["target_entropy"]
    if target is None:
        return AskedTarget(None, str(fields.get("asked_at", "")))
    # Too large an integer is no float, and NaN compares false.
    if type(target) not in (int, float) or not abs(target) <= sys.float_info.max:
        raise TargetError(f"{path}: target_entropy={str(target)[:40]} is not a finite number")
    return AskedTarget(float(target), str(fields.get("asked_at", "")))
