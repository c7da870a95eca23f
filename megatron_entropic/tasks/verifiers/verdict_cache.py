"""Verdicts of servers by the content of what was asked, on disk: a file of JSON lines that only grows, shared by all processes.

A line is one write. Lines that are torn or damaged are passed over: what they said is asked again.
"""

import hashlib
import json
import math
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER_VARIABLE = "MEGATRON_ENTROPIC_VERDICTS"
"""Environment variable of the folder where verdicts are kept unless a verifier's options name one; a run sets it."""


def folder_for(option: str) -> Path | None:
    """The folder that the option `cache` names; "" is the run's, "none" none."""
    if option == "none":
        return None
    named = option or os.environ.get(FOLDER_VARIABLE, "")
    return Path(named).expanduser() if named else None


class VerdictCache:
    """Scores by key. One file a verifier, by `name`; for threads. Without a folder it remembers for this process alone."""

    def __init__(self, folder: Path | None, name: str) -> None:
        self.path = None if folder is None else folder / f"{name}.jsonl"
        self._lock = threading.Lock()
        self._known: dict[str, float] | None = None
        self._file: int | None = None

    def get(self, key: str) -> float | None:
        """The score kept under `key`."""
        with self._lock:
            return self._opened().get(key)

    def put(self, key: str, score: float) -> None:
        """Keeps a score. Raises OSError naming the file."""
        line = (json.dumps({"key": key, "score": score}) + "\n").encode()
        with self._lock:
            self._opened()[key] = score
            if self._file is not None:
                os.write(self._file, line)

    def close(self) -> None:
        """Closes the file; safe to call twice."""
        with self._lock:
            file, self._file, self._known = self._file, None, None
            if file is not None:
                os.close(file)

    def _opened(self) -> dict[str, float]:
        if self._known is None:
            self._known = {}
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
                self._known = _read(self.path)
                if (size := os.fstat(self._file).st_size) and os.pread(self._file, 1, size - 1) != b"\n":
                    os.write(self._file, b"\n")  # after the torn end of a killed run
        return self._known


def _read(path: Path) -> dict[str, float]:
    known = {}
    with path.open("rb") as file:
        for line in file:
            try:
                found = json.loads(line)
                key, score = found["key"], float(found["score"])
            except (ValueError, KeyError, TypeError):
                continue
            if isinstance(key, str) and math.isfinite(score):
                known[key] = score
    return known


def key_of(asked: Mapping[str, Any]) -> str:
    """A key by the content of a request."""
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:32]
