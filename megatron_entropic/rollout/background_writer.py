"""A file written in a thread while training goes on, one at a time: what failed is raised where the next begins, or is waited for."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec

P = ParamSpec("P")


class BackgroundWriter:
    """One thread, `name` in its name."""

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._writing: Future[Path] | None = None

    def begin(self, write: Callable[P, Path], *arguments: P.args, **options: P.kwargs) -> None:
        """Has `write` called in the thread, once the one before is done. Raises what went wrong with that one."""
        self.wait()
        self._writing = self._thread.submit(write, *arguments, **options)

    def wait(self) -> None:
        """Returns once everything begun is on the disk. Raises what went wrong with it, once."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """As `wait`, and nothing can be begun any more. Safe to call twice."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
