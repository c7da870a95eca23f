"""The data task: prompts of several sources of data, mixed by weight, each row judged by its own verifier."""

from collections.abc import Sequence
from typing import Any, ClassVar

from megatron_entropic.config.data import DataConfig, DataSource
from megatron_entropic.tasks.data.judging import FACTORY, DataVerifier, verifier_for
from megatron_entropic.tasks.data.mixing import Mixture
from megatron_entropic.tasks.data.opening import open_store
from megatron_entropic.tasks.data.permutation import permutation
from megatron_entropic.tasks.data.selection import prompt_key, select
from megatron_entropic.tasks.data.source import SourceRows
from megatron_entropic.tasks.task import Problem
from megatron_entropic.tasks.verifiers import waits


class DataTask:
    """The task (task.py says what a task promises).

    With a `seed` an endless stream: problem i depends on (seed, i, the sources' rows and weights) alone, and is found without an
    order of all rows. Without one the rows once, source after source in their files' order: problems 0 ... len - 1.
    """

    verifier: ClassVar[str] = FACTORY

    def __init__(self, sources: Sequence[SourceRows], seed: int | None, *, shuffled: int | None = None) -> None:
        self.sources = sources
        self.seed = seed
        self._shuffled = shuffled
        self._verifier = DataVerifier()
        self.renumber()

    def renumber(self) -> None:
        """To be called when rows of a source were left out. Raises ValueError when nothing is left of one."""
        for rows in self.sources:
            if not len(rows):
                raise ValueError(
                    f"{rows.store.path}: none of its {len(rows.store)} rows is left by filters, deduplication, the split and limits of "
                    f"length ({rows.name})"
                )
        sizes = [len(rows) for rows in self.sources]
        weights = [rows.source.weight for rows in self.sources]
        self._mixture = None if self.seed is None else Mixture(sizes, weights, self.seed)

    def __len__(self) -> int:
        return sum(map(len, self.sources))

    def __str__(self) -> str:
        return "\n".join(map(str, self.sources))

    @property
    def verifier_options(self) -> dict[str, Any]:
        """What the processes that judge make ahead."""
        specs: list[Any] = []
        for rows in self.sources:
            specs += [spec for spec in rows.specs if spec not in specs]
        return {"verifiers": specs}

    def problem(self, index: int) -> Problem:
        """Problem `index`. Raises ValueError on an index that is not there, and naming file, row and field of a bad row."""
        if index < 0 or (self._mixture is None and index >= len(self)):
            raise ValueError(
                f"problem index {index}: must be from 0 to below {len(self)}" if index >= 0 else f"problem index {index}: < 0"
            )
        if self._shuffled is not None:
            index = permutation(len(self), f"data {self._shuffled} once")[index]
        if self._mixture is not None:
            draw = self._mixture[index]
            return self._at(draw.source, draw.place)
        for source, rows in enumerate(self.sources):
            if index < len(rows):
                return self._at(source, index)
            index -= len(rows)
        raise AssertionError(index)

    def once(self) -> "DataTask":
        """The same rows, each once, in an order that the seed gives."""
        return DataTask(self.sources, None, shuffled=self.seed)

    def prompt_keys(self) -> set[int]:
        """Keys (selection.py) of all prompts; reads every row."""
        return {prompt_key(rows.question(index).prompt) for rows in self.sources for index in rows.indices()}

    def score(self, problem: Problem, response: str) -> Any:
        """As the row's verifier says; in runs in a process of its own."""
        return self._verifier.score(problem, response)

    def waits(self, problem: Problem) -> bool:
        """Whether the row's verifier asks a server (task.py)."""
        return waits(verifier_for(problem.data["verifier"]))

    def _at(self, source: int, place: int) -> Problem:
        rows = self.sources[source]
        return rows.problem(rows.index(place))


def open_data(
    sources: Sequence[DataSource],
    data: DataConfig | None = None,
    *,
    seed: int | None,
    name: str = "data.train",
    part: str | None = None,
) -> DataTask:
    """The task over `sources`; `seed` None: their rows once, in their files' order.

    Args:
        data: what holds for all sources: the fraction that is held out, deduplication.
        name: the setting that names the sources, for messages.
        part: train, held_out or all, for sources that do not say it themselves; by default what `data` says.
    Raises:
        ValueError: a source that cannot be used, by setting, file and row.
    """
    if not sources:
        raise ValueError(f"{name}: needed: a list of sources, such as {name}='[{{path: FILE, verifier: math}}]'")
    data = data or DataConfig()
    opened = [
        SourceRows(source, open_store(source.path, split=source.split, subset=source.subset), f"{name}[{number}]")
        for number, source in enumerate(sources)
    ]
    select(opened, data, part or data.part)
    return DataTask(opened, seed)
