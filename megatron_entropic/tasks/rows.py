"""Rows of a task's data file: JSON Lines, also gzipped, read whole and checked; every bad row is named by file and line.

Fields are recognised by the names that data sets use, the same two in every row, or named by `task.options.prompt_field` and
`answer_field` (`reward_model.ground_truth` is a field of a field).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_entropic.tasks.json_lines import JsonLine, json_lines
from megatron_entropic.tasks.row_values import BadRowError, answer_text, prompt_text, recognised, value_at

PROMPT_FIELDS = ("prompt", "question", "problem")
"""Names of the prompt's field, the first that a row has."""
ANSWER_FIELDS = ("answer", "expected_answer", "final_answer", "ground_truth", "reward_model.ground_truth", "label", "solution")
"""The same for the known answer."""
PLAIN_NUMBER = re.compile(r"-?[0-9]{1,30}(?:\.[0-9]{1,30})?")
"""Fields that every verifier reads."""
LONGEST_ANSWER, MOST_WORDS = 1000, 40
"""Characters and words of a known answer; more is a worked solution."""
_SHOWN = 5
"""Bad rows that an error shows."""


@dataclass(frozen=True, slots=True)
class DataRow:
    """One problem; `number` is its line, from 1."""

    number: int
    prompt: str
    answer: str


@dataclass(frozen=True)
class DataFile:
    """The rows of a file in its order, the fields they come from, and what is odd about them.

    `repeated` rows have prompt and answer of an earlier one; `contradicting` rows its prompt and another answer.
    """

    path: Path
    rows: list[DataRow]
    prompt_field: str
    answer_field: str
    repeated: int
    contradicting: int

    def __str__(self) -> str:
        odd = [
            f"{count} {'row' if count == 1 else 'rows'} {what}"
            for count, what in (
                (self.repeated, "repeating an earlier one"),
                (self.contradicting, "with the prompt of an earlier one and another answer"),
            )
            if count
        ]
        head = f"{self.path}: {len(self.rows)} problems, from the fields {self.prompt_field} and {self.answer_field}"
        return "; ".join([head, *odd])


def read_rows(path: Path, *, prompt_field: str, answer_field: str, known_answer: Callable[[str], str]) -> DataFile:
    """All rows of the file.

    Args:
        path: JSON Lines of objects, UTF-8, with or without gzip; `~` is the user's home.
        prompt_field, answer_field: their fields; "" recognises them.
        known_answer: the answer in the text of the answer's field; "" when there is none.
    Raises:
        ValueError: not such a file, no such fields, or rows that cannot be used: up to five by line, and how many there are.
    """
    path = path.expanduser()
    reader = _Reader(prompt_field, answer_field, known_answer)
    for line in json_lines(path):
        reader.take(line)
    if reader.bad:
        more = f"; and {reader.bad - _SHOWN} more" if reader.bad > _SHOWN else ""
        raise ValueError(f"{path}: {reader.bad} of {reader.seen} rows cannot be used: {'; '.join(reader.problems)}{more}")
    if not reader.rows:
        raise ValueError(f"{path}: holds no problems")
    return DataFile(path, reader.rows, reader.prompt_field, reader.answer_field, reader.repeated, reader.contradicting)


class _Reader:
    """The rows read so far."""

    def __init__(self, prompt_field: str, answer_field: str, known_answer: Callable[[str], str]) -> None:
        self.prompt_field, self.answer_field = prompt_field, answer_field
        self._known_answer = known_answer
        self.rows: list[DataRow] = []
        self.seen = self.bad = self.repeated = self.contradicting = 0
        self.problems: list[str] = []
        self._answers: dict[str, str] = {}

    def take(self, line: JsonLine) -> None:
        """One row, or what is wrong with it."""
        self.seen += 1
        try:
            self._add(line.number, line.fields())
        except BadRowError as problem:
            self.bad += 1
            if len(self.problems) < _SHOWN:
                self.problems.append(f"line {line.number}: {problem}")

    def _add(self, number: int, fields: dict[str, Any]) -> None:
        self.prompt_field = self.prompt_field or recognised(fields, PROMPT_FIELDS, "prompt")
        self.answer_field = self.answer_field or recognised(fields, ANSWER_FIELDS, "answer")
        prompt = prompt_text(value_at(fields, self.prompt_field), self.prompt_field)
        text = answer_text(value_at(fields, self.answer_field), self.answer_field)
        answer = self._known_answer(text).strip()
        if not answer or (answer == text and is_worked_out(text)):
            raise BadRowError(
                f"field {self.answer_field} is no final answer and holds none, after #### or in \\boxed{{...}}: {text[:60]!r}"
            )
        if prompt in self._answers:
            self.repeated += self._answers[prompt] == answer
            self.contradicting += self._answers[prompt] != answer
        self._answers.setdefault(prompt, answer)
        self.rows.append(DataRow(number, prompt, answer))


def is_worked_out(text: str) -> bool:
    """Whether a text is a solution rather than its result: no policy could give it back."""
    return "\n" in text or len(text) > LONGEST_ANSWER or len(text.split()) > MOST_WORDS
