"""Wall-clock seconds of the parts of a step, which are marked for profilers too."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from megatron_entropic.platform import mark


class StepTimer:
    """Adds up the seconds spent in named parts between two calls of `lap`. The first lap starts with the first part."""

    def __init__(self) -> None:
        self._parts: dict[str, float] = {}
        self._start: float | None = None

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Times the block as `part`; a part entered twice in a step counts twice."""
        start = time.perf_counter()
        self._start = self._start or start
        try:
            with mark(part):
                yield
        finally:
            self._parts[part] = self._parts.get(part, 0.0) + time.perf_counter() - start

    def lap(self) -> dict[str, float]:
        """`time/<part>_s` of every part and `time/step_s` since the last lap; starts the next."""
        now = time.perf_counter()
        times = {f"time/{part}_s": seconds for part, seconds in self._parts.items()}
        times["time/step_s"] = now - (self._start or now)
        self._parts, self._start = {}, now
        return times
