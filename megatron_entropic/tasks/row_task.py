"""Base of the tasks over a data file: a seeded walk through its rows, every epoch in an order of its own."""

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import lru_cache
from hashlib import sha256

from megatron_entropic.tasks.rows import DataFile, DataRow
from megatron_entropic.tasks.task import Problem

SPLITS = ("train", "test", "all")


class RowTask(ABC):
    """Problems of a data file; a task adds `score`. Problem i of seed s depends on (s, i, the rows) alone.

    `template` is the text of a prompt, in which {prompt} stands for the row's. `data` of a problem is the row's answer and line.
    """

    def __init__(self, file: DataFile, template: str, seed: int) -> None:
        self.file = file
        self._lines: Sequence[DataRow] = file.rows
        self._template = template
        self._seed = seed
        self._order = lru_cache(maxsize=2)(self._shuffled)

    def __str__(self) -> str:
        used = len(self._lines)
        return str(self.file) if used == len(self.file.rows) else f"{self.file}; {used} of them are used"

    @property
    def rows(self) -> Sequence[DataRow]:
        """The rows that problems come from, in the file's order; problem indices 0 ... len(rows) - 1 are these, each once."""
        return self._lines

    def problem(self, index: int) -> Problem:
        """Problem `index` of the endless stream. Raises ValueError on a negative index."""
        if index < 0:
            raise ValueError(f"problem index {index}: must be >= 0")
        epoch, position = divmod(index, len(self._lines))
        return self.problem_of(self._lines[self._order(epoch)[position]])

    def problem_of(self, row: DataRow) -> Problem:
        """The problem that a row asks."""
        return Problem(self._template.replace("{prompt}", row.prompt), data={"answer": row.answer, "line": row.number})

    @abstractmethod
    def score(self, problem: Problem, response: str) -> float:
        """As a Task's."""

    def response_of(self, answer: str) -> str:
        """A response that gives `answer` as the task wants it given."""
        return answer

    def restrict(self, wanted: Callable[[DataRow], bool]) -> list[DataRow]:
        """Leaves the rows that are not `wanted` out of the stream, and returns them. Raises ValueError when none would be left."""
        out = [row for row in self._lines if not wanted(row)]
        if len(out) == len(self._lines):
            raise ValueError(f"{self.file.path}: none of its {len(out)} rows is left")
        if out:
            self._lines = [row for row in self._lines if wanted(row)]
            self._order.cache_clear()
        return out

    def take_split(self, split: str, test_fraction: float) -> None:
        """Leaves the rows of `split` in the stream: "test", about that fraction of all; "train", the others; or "all".

        Which rows these are depends on their prompts alone. Raises ValueError for another word, and where none would be left.
        """
        if split not in SPLITS or (split == "test" and not test_fraction):
            raise ValueError(f"task.options.split={split!r}: must be one of {', '.join(SPLITS)}; test needs task.options.test_fraction")
        if test_fraction and split != "all":
            self.restrict(lambda row: _is_held_out(row.prompt, test_fraction) == (split == "test"))

    def _shuffled(self, epoch: int) -> list[int]:
        order = list(range(len(self._lines)))
        digest = sha256(f"math {self._seed} {epoch}".encode()).digest()
        random.Random(int.from_bytes(digest)).shuffle(order)
        return order


def _is_held_out(prompt: str, fraction: float) -> bool:
    return int.from_bytes(sha256(prompt.encode()).digest()[:8]) < fraction * 2**64
