"""Progress of an evaluation: a bar on a terminal, a line now and then everywhere else."""

import sys
import time
from threading import Lock
from types import TracebackType
from typing import TextIO

from tqdm import tqdm

EVERY_S = 10.0
"""Between two lines where there is no terminal."""


class Counter:
    """Counts problems that are answered, from any thread. A context manager; `stream` is for tests."""

    def __init__(self, total: int, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._total = total
        self._done = 0
        self._said = time.monotonic()
        self._lock = Lock()
        terminal = self._stream.isatty()
        self._bar = tqdm(total=total, unit="problem", file=self._stream, dynamic_ncols=True) if terminal else None

    def __enter__(self) -> "Counter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()

    def add(self, count: int) -> None:
        """`count` more are answered."""
        self.reach(self._done + count)

    def reach(self, done: int) -> None:
        """At least `done` are answered."""
        with self._lock:
            if done <= self._done:
                return
            self._done = done
            if self._bar is not None:
                self._bar.update(done - self._bar.n)
            elif done == self._total or time.monotonic() - self._said > EVERY_S:
                self._said = time.monotonic()
                print(f"{done} of {self._total} problems answered", file=self._stream, flush=True)
