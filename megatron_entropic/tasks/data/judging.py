"""Verifiers by their specs, in the process that reads the data and in those that judge answers: these never open a data file.

A spec is JSON: {"name", "options"}, or {"parts": [{"name", "weight", "options"}, ...]}, whose score is the weighted mean.
"""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar

from megatron_entropic.tasks.row_values import BadRowError
from megatron_entropic.tasks.task import Problem
from megatron_entropic.tasks.verifiers import RowVerifier, make_verifier

FACTORY = f"{__name__}:make_data_verifier"
Spec = Mapping[str, Any]


class WeightedSum:
    """Several verifiers of one answer. The known answer is what the first makes of it."""

    def __init__(self, parts: Sequence[Mapping[str, Any]]) -> None:
        self._parts = [(part["name"], float(part["weight"]), make_verifier(part["name"], part["options"])) for part in parts]
        if all(hasattr(verifier, "reads") for _, _, verifier in self._parts):
            self.reads = tuple(field for _, _, verifier in self._parts for field in getattr(verifier, "reads", ()))

    def known_answer(self, text: str, row: Mapping[str, Any]) -> str:
        return self._parts[0][2].known_answer(text, row)

    def score(self, answer: str, row: Mapping[str, Any], response: str) -> dict[str, float]:
        scores: dict[str, float] = {}
        total = weights = 0.0
        for number, (name, weight, verifier) in enumerate(self._parts, start=1):
            given = verifier.score(answer, row, response)
            score = float(given["score"] if isinstance(given, Mapping) else given)
            scores[name if name not in scores else f"{name}_{number}"] = score
            total, weights = total + weight * score, weights + weight
        return {**scores, "score": total / weights}


def verifier_for(spec: Spec) -> RowVerifier:
    """The verifier of a spec, made once in a process. Raises ValueError naming what is wrong with it."""
    return _made(json.dumps(spec, sort_keys=True))


@lru_cache(maxsize=1024)
def _made(spec: str) -> RowVerifier:
    content = json.loads(spec)
    return WeightedSum(content["parts"]) if "parts" in content else make_verifier(content["name"], content["options"])


class DataVerifier:
    """Scores answers by what their problems carry."""

    inline: ClassVar[bool] = False

    def score(self, problem: Problem, response: str) -> Any:
        """What the row's verifier says: a number, or a mapping of parts with the total under "score"."""
        return verifier_for(problem.data["verifier"]).score(str(problem.data["answer"]), problem.data.get("fields", {}), response)


def make_data_verifier(options: Mapping[str, Any], seed: int) -> DataVerifier:
    """The verifier, those of `options` ("verifiers": specs) loaded: the first answer is to be as fast as the others."""
    for spec in options.get("verifiers", ()):
        start = getattr(verifier_for(spec), "start", None)
        if start is not None:
            start()
    return DataVerifier()


def row_spec(name: Any, options: Any, known: Mapping[str, str]) -> dict[str, Any]:
    """The spec that a row names by its own fields. Only verifiers of the project: a data file never names code to import.

    Raises BadRowError.
    """
    if isinstance(name, str) and name in known and isinstance(options, Mapping | None):
        return {"name": name, "options": dict(options or {})}
    raise BadRowError(f"field verifier is {str(name)[:60]!r}; a row may name one of {', '.join(known)}; others are named by data.train")
