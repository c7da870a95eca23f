"""Rows that Reasoning Gym made: its entry is the row, its verifier the data set's, with the exceptions of tasks/reasoning_gym.py."""

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from megatron_entropic.tasks.row_values import BadRowError
from megatron_entropic.tasks.verifiers.options import Options


class Gym:
    """Scores as the task reasoning_gym does. The row has `metadata` (or its JSON), which names the data set unless `dataset` does."""

    reads: tuple[str, ...] = ("question", "metadata", "dataset")

    def __init__(self, dataset: str) -> None:
        self.dataset = dataset
        if dataset and (problem := _refused(dataset)):
            raise ValueError(f"verifier reasoning_gym: dataset={dataset!r}: {problem}")
        self._judge = lru_cache(maxsize=64)(_dataset)

    def start(self) -> None:
        """Loads the package."""
        _refused("")

    def known_answer(self, text: str, row: Mapping[str, Any]) -> str:
        """The text, once the row says which data set judges it."""
        try:
            dataset = self._dataset_of(row)
        except ValueError as error:
            raise BadRowError(f"field metadata: {error}") from None
        if problem := _refused(dataset):
            raise BadRowError(f"data set {dataset[:60]!r}: {problem}")
        return text

    def score(self, answer: str, row: Mapping[str, Any], response: str) -> float:
        """In [0, 1]."""
        from megatron_entropic.tasks.reasoning_gym import entry_score, extract_answer

        dataset = self._dataset_of(row)
        entry = {"question": row.get("question", ""), "answer": answer, "metadata": _metadata(row)}
        return entry_score(dataset, self._judge(dataset), extract_answer(response), entry)

    def _dataset_of(self, row: Mapping[str, Any]) -> str:
        named = self.dataset or str(_metadata(row).get("source_dataset") or row.get("dataset") or "")
        if not named:
            raise ValueError("names no source_dataset; name it by the option dataset")
        return named


def _metadata(row: Mapping[str, Any]) -> dict[str, Any]:
    """The entry's metadata. Raises ValueError when it is none."""
    metadata = row.get("metadata")
    if isinstance(metadata, str):
        metadata = json.loads(metadata)
    if not isinstance(metadata, Mapping):
        raise ValueError("missing, or no object")
    return dict(metadata)


def _refused(dataset: str) -> str:
    """The reason why a data set cannot judge; empty when it can."""
    from megatron_entropic.tasks.reasoning_gym import dataset_problem

    return dataset_problem(dataset) if dataset else ""


def _dataset(name: str) -> Any:
    import reasoning_gym

    return reasoning_gym.create_dataset(name, seed=0, size=1)


def make_gym(options: Mapping[str, Any]) -> Gym:
    """Options: dataset (else what the row's metadata says)."""
    return Gym(Options("reasoning_gym", options, "dataset").text("dataset", ""))
