"""The contract of a row's verifier: it knows one kind of answer, and nothing of data files, prompts or tasks."""

from collections.abc import Mapping
from typing import Any, Protocol


class RowVerifier(Protocol):
    """Judges answers to the rows of a data set. Made by `make_verifier` from a name and options.

    What it may have besides:
        reads: names of the fields of a row that `score` looks at: only those travel with the problem; without it all but prompt and
            answer do.
        response_of(answer): a response that gives the known answer.
        start(): loads what takes long; called in each process that judges, before its first answer.
        waits: true where `score` waits for a server and computes next to nothing: then many answers are judged at a time, by threads.
        light: true where `score` takes microseconds for any text.
    """

    def known_answer(self, text: str, row: Mapping[str, Any]) -> str:
        """The known answer in the text of the answer's field. Raises BadRowError (tasks/row_values.py) when it holds none."""
        ...

    def score(self, answer: str, row: Mapping[str, Any], response: str) -> float | Mapping[str, float]:
        """In [0, 1]; of a mapping "score" is the total and the others are its parts."""
        ...
