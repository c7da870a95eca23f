"""One source of the data task, opened: its rows, how they become problems, and which of them are asked."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_entropic.config.data import DataSource
from megatron_entropic.config.verifiers import VERIFIERS
from megatron_entropic.tasks.data import formats
from megatron_entropic.tasks.data.judging import row_spec, verifier_for
from megatron_entropic.tasks.data.stores import Store
from megatron_entropic.tasks.row_values import BadRowError
from megatron_entropic.tasks.rows import is_worked_out
from megatron_entropic.tasks.task import Problem

ONE_ANSWER = frozenset({"math", "exact", "choice", "number", "regex"})
"""Verifiers whose known answer is one text: a list of several is then no answer."""


DEFAULT_SPEC: Mapping[str, Any] = {"name": "math", "options": {}}
"""Of rows that say nothing else."""


class SourceRows:
    """Rows of a source. `kept` are those that are asked, by their index in the store, ascending; None: all.

    `name` is how messages call the settings of the source, such as data.train[0]. Raises ValueError when its fields are not there.
    """

    def __init__(self, source: DataSource, store: Store, name: str) -> None:
        self.source, self.store, self.name = source, store, name
        self.kept: npt.NDArray[np.int64] | None = None
        self._spec = _spec_of(source)
        if self._spec is not None:
            _check_verifier(self._spec, name)
        try:
            first = store.row(0)
            self.prompt_field = source.prompt_field or formats.prompt_field_of(first)
            self.answer_field = source.answer_field or self._recognised_answer(first)
        except BadRowError as problem:
            raise ValueError(f"{store.where(0)}: {problem} ({name})") from problem

    def _recognised_answer(self, row: Mapping[str, Any]) -> str:
        """The answer's field; "" where none is recognised and the verifier may do without."""
        try:
            return formats.answer_field_of(row, self.prompt_field)
        except BadRowError:
            if (self._spec_of_row(row)["name"]) in ONE_ANSWER:
                raise
            return ""

    def __len__(self) -> int:
        return len(self.store) if self.kept is None else len(self.kept)

    def __str__(self) -> str:
        used = "" if len(self) == len(self.store) else f"; {len(self)} of them {'is' if len(self) == 1 else 'are'} used"
        fields = f"{self.prompt_field} and {self.answer_field}" if self.answer_field else self.prompt_field
        return f"{self.store.path}: {len(self.store)} rows, from the fields {fields}{used}"

    @property
    def specs(self) -> list[Mapping[str, Any]]:
        """Specs of the verifiers that are known before a row is read."""
        return [self._spec or DEFAULT_SPEC]

    def index(self, place: int) -> int:
        """The store's index of the row that stands at `place` of those that are kept."""
        return place if self.kept is None else int(self.kept[place])

    def keep(self, wanted: npt.NDArray[np.bool_]) -> None:
        """Leaves out what is not `wanted` of the rows that are kept."""
        self.kept = np.flatnonzero(wanted) if self.kept is None else self.kept[wanted]

    def indices(self) -> Iterator[int]:
        """The kept rows' indices in the store."""
        return iter(range(len(self.store))) if self.kept is None else iter(self.kept.tolist())

    def messages(self, row: Mapping[str, Any]) -> list[dict[str, str]]:
        """The chat that asks a row: its own, with the source's system prompt and template. Raises BadRowError."""
        messages = formats.messages_of(row, self.prompt_field, self.answer_field)
        if self.source.prompt_template != "{prompt}":
            last = messages[-1]
            messages[-1] = {**last, "content": self.source.prompt_template.replace("{prompt}", last["content"])}
        if self.source.system:
            others = [message for message in messages if message["role"] != "system"]
            messages = [{"role": "system", "content": self.source.system}, *others]
        return messages

    def question(self, index: int) -> Problem:
        """What the store's row `index` asks, without what its verifier needs. Raises ValueError naming file, row and field."""
        try:
            return self._asking(self.store.row(index))
        except BadRowError as problem:
            raise ValueError(f"{self.store.where(index)}: {problem}") from problem

    def problem(self, index: int) -> Problem:
        """The problem of the store's row `index`. Raises ValueError naming file, row and field."""
        try:
            row = self.store.row(index)
            return replace(self._asking(row), data=self._data(index, row))
        except BadRowError as problem:
            raise ValueError(f"{self.store.where(index)}: {problem}") from problem

    def _asking(self, row: Mapping[str, Any]) -> Problem:
        messages = self.messages(row)
        alone = len(messages) == 1 and messages[0]["role"] == "user"
        return Problem(
            prompt=formats.question_of(messages),
            messages=() if alone else tuple(messages),
            template_options=self.source.template_options,
        )

    def _data(self, index: int, row: Mapping[str, Any]) -> dict[str, Any]:
        """What the verifier needs: the answer, how it is judged, where it stands, and the fields that are looked at."""
        spec = self._spec_of_row(row)
        verifier = verifier_for(spec)
        text = formats.answer_of(row, self.answer_field, self.prompt_field, structured=spec["name"] not in ONE_ANSWER)
        answer = verifier.known_answer(text, row)
        if spec["name"] in ONE_ANSWER and (not answer.strip() or (answer.strip() == text and is_worked_out(text))):
            raise BadRowError(
                f"field {self.answer_field} is no final answer and holds none, after #### or in \\boxed{{...}}: {text[:60]!r}"
            )
        reads = getattr(verifier, "reads", None)
        used = (self.prompt_field, self.answer_field, *formats.VERIFIER_FIELDS)
        fields = {name: formats.plain(value) for name, value in row.items() if (name not in used if reads is None else name in reads)}
        data = {"answer": answer, "verifier": spec, "source": str(self.store.path), "row": self.store.number(index)}
        return {**data, **({"fields": fields} if fields else {})}

    def _spec_of_row(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        if self._spec is not None:
            return self._spec
        if row.get("verifier") is not None:
            return row_spec(row["verifier"], row.get("verifier_options"))
        named = formats.BY_DATA_SOURCE.get(str(row.get("data_source")), "")
        return {"name": named, "options": {}} if named in VERIFIERS else DEFAULT_SPEC


def _check_verifier(spec: Mapping[str, Any], name: str) -> None:
    try:
        verifier_for(spec)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _spec_of(source: DataSource) -> dict[str, Any] | None:
    """The spec that the settings name; None when rows say it."""
    if isinstance(source.verifier, str):
        return {"name": source.verifier, "options": source.verifier_options} if source.verifier else None
    parts = [{name: value for name, value in asdict(part).items() if value != ""} for part in source.verifier]
    return {"name": "sum", "options": {"parts": parts}}
