"""Which steps a tracker has taken, on the disk, so that a resumed run can hand over what it missed.

logs/tracker-NAME.json holds the run's id at the tracker, known before the first checkpoint is, and the last step it took.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_entropic.system.atomic_files import write_atomically


@dataclass
class Delivered:
    """`step` is the last one of an unbroken row that the tracker took, -1 before the first; None: not known."""

    path: Path
    run_id: str | None = None
    step: int | None = None

    @classmethod
    def of(cls, run_dir: Path, name: str) -> "Delivered":
        """As it is on the disk. An unreadable file is as none."""
        path = run_dir / "logs" / f"tracker-{name}.json"
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            return cls(path, str(found["run_id"]), int(found["step"]))
        except (OSError, ValueError, KeyError, TypeError):
            return cls(path)

    def missed(self, lines: Sequence[Mapping[str, Any]], *, known: bool) -> Sequence[Mapping[str, Any]]:
        """Of a resumed run's metrics those that the tracker lacks. Without a note one that is `known` has them, a new one none."""
        if self.step is None:
            return () if known else lines
        return [line for line in lines if line["step"] > (self.step if known else -1)]

    def begin(self, run_id: str, first_step: int) -> None:
        """Notes the run's id, and that `first_step` is the next that the tracker will take."""
        self.run_id, self.step = run_id, first_step - 1
        self._write()

    def took(self, step: int) -> None:
        """Notes a step, when it continues the row."""
        if self.step is not None and step == self.step + 1:
            self.step = step
            self._write()

    def _write(self) -> None:
        write_atomically(self.path, (json.dumps({"run_id": self.run_id, "step": self.step}) + "\n").encode())
