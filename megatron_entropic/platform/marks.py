"""Named spans of a process's work, for torch's profiler and, on a GPU, for nsys. Nothing at all while nobody records."""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from megatron_entropic.platform.devices import accelerated


class Marks:
    """Whether spans are marked. One for the process: what is marked lies deep below what decides."""

    def __init__(self) -> None:
        self._on = 0
        self._changing = threading.Lock()

    def __call__(self, name: str) -> AbstractContextManager[None]:
        """A context manager around the work called `name`; it costs nothing while marks are off."""
        return _marked(name) if self._on else nullcontext()

    def switch(self, *, on: bool) -> None:
        """Marks from now on, or no more; those who switched it on each switch it off."""
        with self._changing:
            self._on += 1 if on else -1

    @property
    def on(self) -> bool:
        """Whether spans are marked now."""
        return self._on > 0


mark = Marks()


@contextmanager
def _marked(name: str) -> Iterator[None]:
    with torch.profiler.record_function(name):
        if not accelerated():
            yield
            return
        torch.cuda.nvtx.range_push(name)  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            torch.cuda.nvtx.range_pop()  # type: ignore[no-untyped-call]
