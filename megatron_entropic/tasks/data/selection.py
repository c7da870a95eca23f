"""Which rows of the sources are asked: filters, the part of a split, one of several with the same prompt, the first so many.

Only what is asked for is looked at: without a filter, a split or deduplication no row is read when data is opened.
"""

from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_entropic.config.data import DataConfig
from megatron_entropic.tasks.data import formats
from megatron_entropic.tasks.data.expression import Expression, ExpressionError
from megatron_entropic.tasks.data.source import SourceRows
from megatron_entropic.tasks.row_values import BadRowError, find

Keys = npt.NDArray[np.uint64]


def select(sources: Sequence[SourceRows], data: DataConfig, part: str) -> None:
    """Leaves out of the sources what `data` and their own settings say; `part` is that of sources which do not say it.

    Raises ValueError naming the setting, and the file and row, of what cannot be decided.
    """
    keys = [_filtered(rows, data.deduplicate or _is_split(rows, data, part)) for rows in sources]
    for number, rows in enumerate(sources):
        if _is_split(rows, data, part):
            wanted = held_out(keys[number], data.held_out) == ((rows.source.part or part) == "held_out")
            rows.keep(wanted)
            keys[number] = keys[number][wanted]
    if data.deduplicate:
        _deduplicate(sources, keys)
    for rows in sources:
        if rows.source.limit and len(rows) > rows.source.limit:
            rows.keep(np.arange(len(rows)) < rows.source.limit)


def held_out(keys: Keys, fraction: float) -> npt.NDArray[np.bool_]:
    """Which prompts are never trained on: those whose key is among the lowest `fraction` of all keys that there can be."""
    return keys < np.uint64(min(int(fraction * 2**64), 2**64 - 1))


def prompt_key(question: str) -> int:
    """64 bits of a hash of a prompt, the same for prompts that differ in white space or case alone."""
    normal = " ".join(question.split()).casefold()
    return int.from_bytes(blake2b(normal.encode("utf-8", "surrogatepass"), digest_size=8).digest())


def _is_split(rows: SourceRows, data: DataConfig, part: str) -> bool:
    wanted = rows.source.part or part
    if wanted == "held_out" and not data.held_out:
        raise ValueError(f"{rows.name}.part=held_out needs data.held_out, such as 0.1")
    return bool(data.held_out) and wanted != "all"


def _filtered(rows: SourceRows, keyed: bool) -> Keys:
    """Applies the filter of a source; the keys of the rows that it leaves, where they are needed."""
    if not (keyed or rows.source.filter):
        return np.zeros(0, np.uint64)
    expression = _expression(rows) if rows.source.filter else None
    wanted = np.ones(len(rows.store), np.bool_)
    keys = np.zeros(len(rows.store), np.uint64)
    for index, row in enumerate(_rows(rows, expression, keyed)):
        if expression is not None:
            try:
                wanted[index] = expression(_Named(row, rows))
            except ExpressionError as error:
                raise ValueError(f"{rows.name}.filter={error}; {rows.store.where(index)}") from None
            except BadRowError as problem:
                raise ValueError(f"{rows.store.where(index)}: {problem}") from problem
        if keyed and wanted[index]:
            try:
                keys[index] = prompt_key(_question(row, rows))
            except BadRowError as problem:
                raise ValueError(f"{rows.store.where(index)}: {problem}") from problem
    if expression is not None:
        rows.keep(wanted)
    return keys[wanted]


class _Named(Mapping[str, Any]):
    """The row's fields by name; `prompt` is the text that is asked, `answer` the known answer's field where none is called so."""

    def __init__(self, row: Mapping[str, Any], rows: SourceRows) -> None:
        self._row, self._rows = row, rows

    def __getitem__(self, name: str) -> Any:
        if name == "prompt":
            return None if find(self._row, self._rows.prompt_field) is None else _question(self._row, self._rows)
        if name in self._row:
            return self._row[name]
        return find(self._row, self._rows.answer_field) if name == "answer" else None

    def __iter__(self) -> Iterator[str]:
        return iter(self._row)

    def __len__(self) -> int:
        return len(self._row)


def _question(row: Mapping[str, Any], rows: SourceRows) -> str:
    value = find(row, rows.prompt_field)
    return value if isinstance(value, str) else formats.question_of(formats.messages_of(row, rows.prompt_field, rows.answer_field))


def _expression(rows: SourceRows) -> Expression:
    """The filter of a source. Raises ValueError, also for a field that its first row does not have."""
    try:
        expression = Expression(rows.source.filter)
    except ExpressionError as error:
        raise ValueError(f"{rows.name}.filter={error}") from None
    known = {*rows.store.names(), "prompt", "answer"}
    if unknown := sorted(expression.fields - known):
        raise ValueError(
            f"{rows.name}.filter={expression.text!r}: {rows.store.path} has no field {unknown[0]}; it has: {', '.join(sorted(known))}"
        )
    return expression


def _rows(rows: SourceRows, expression: Expression | None, keyed: bool) -> Iterator[dict[str, Any]]:
    """The rows, of their fields at least those that are looked at."""
    names = set() if expression is None else {*expression.fields}
    if keyed or "prompt" in names:
        names |= {rows.prompt_field, rows.prompt_field.partition(".")[0]}
    if "answer" in names or rows.answer_field == rows.prompt_field:
        names |= {rows.answer_field, rows.answer_field.partition(".")[0]}
    return rows.store.scan(sorted(names))


def _deduplicate(sources: Sequence[SourceRows], keys: Sequence[Keys]) -> None:
    """Keeps the first row of each prompt, of the first source that has it."""
    every = np.concatenate(keys)
    first = np.zeros(len(every), np.bool_)
    first[np.unique(every, return_index=True)[1]] = True
    start = 0
    for rows, of_source in zip(sources, keys, strict=True):
        rows.keep(first[start : start + len(of_source)])
        start += len(of_source)
