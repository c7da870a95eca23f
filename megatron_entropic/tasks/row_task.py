"""What the tasks over a data file share: a seeded walk through its rows, every epoch in an order of its own."""

import random
from collections.abc import Callable, Sequence
from functools import lru_cache
from hashlib import sha256

from megatron_entropic.tasks.rows import DataFile, Row
from megatron_entropic.tasks.task import Problem


class RowTask:
    """Problems of a data file; a task adds `score`. Problem i of seed s depends on (s, i, the rows) alone.

    `template` is the text of a prompt, in which {prompt} stands for the row's. `data` of a problem is the row's answer and line.
    """

    def __init__(self, file: DataFile, template: str, seed: int) -> None:
        self.file = file
        self._lines: Sequence[Row] = file.rows
        self._template = template
        self._seed = seed
        self._order = lru_cache(maxsize=2)(self._shuffled)

    @property
    def rows(self) -> Sequence[Row]:
        """The rows that problems come from, in the file's order; problem indices 0 ... len(rows) - 1 are these, each once."""
        return self._lines

    def problem(self, index: int) -> Problem:
        """Problem `index` of the endless stream. Raises ValueError on a negative index."""
        if index < 0:
            raise ValueError(f"problem index {index}: must be >= 0")
        epoch, place = divmod(index, len(self._lines))
        return self.problem_of(self._lines[self._order(epoch)[place]])

    def problem_of(self, row: Row) -> Problem:
        """The problem that a row asks."""
        return Problem(self._template.replace("{prompt}", row.prompt), data={"answer": row.answer, "line": row.number})

    def restrict(self, wanted: Callable[[Row], bool]) -> list[Row]:
        """Leaves the rows that are not `wanted` out of the stream, and returns them. Raises ValueError when none would be left."""
        out = [row for row in self._lines if not wanted(row)]
        if len(out) == len(self._lines):
            raise ValueError(f"{self.file.path}: none of its {len(out)} rows is left")
        if out:
            self._lines = [row for row in self._lines if wanted(row)]
            self._order.cache_clear()
        return out

    def _shuffled(self, epoch: int) -> list[int]:
        order = list(range(len(self._lines)))
        digest = sha256(f"math {self._seed} {epoch}".encode()).digest()
        random.Random(int.from_bytes(digest)).shuffle(order)
        return order
