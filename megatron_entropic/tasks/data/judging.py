"""Verifiers by their specs, in the process that reads the data and in those that judge answers: these never open a data file.

A spec is JSON: {"name", "options"}.
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, ClassVar

from megatron_entropic.config.verifiers import row_verifier_problem
from megatron_entropic.tasks.data import formats
from megatron_entropic.tasks.row_values import BadRowError
from megatron_entropic.tasks.task import Problem
from megatron_entropic.tasks.verifiers import RowVerifier, make_verifier

FACTORY = f"{__name__}:make_data_verifier"
Spec = Mapping[str, Any]


def verifier_for(spec: Spec) -> RowVerifier:
    """The verifier of a spec, made once in a process. Raises ValueError naming what is wrong with it."""
    return _made(json.dumps(spec, sort_keys=True))


@lru_cache(maxsize=1024)
def _made(spec: str) -> RowVerifier:
    content = json.loads(spec)
    return make_verifier(content["name"], content["options"])


class DataVerifier:
    """Scores answers by what their problems carry."""

    inline: ClassVar[bool] = False

    def score(self, problem: Problem, response: str) -> Any:
        """What the row's verifier says: a number, or a mapping of parts with the total under "score"."""
        row = {"prompt": problem.prompt, **problem.data.get("fields", {})}
        return verifier_for(problem.data["verifier"]).score(str(problem.data["answer"]), row, response)


def make_data_verifier(options: Mapping[str, Any], seed: int) -> DataVerifier:
    """The verifier, those of `options` ("verifiers": specs) loaded: the first answer is to be as fast as the others."""
    for spec in options.get("verifiers", ()):
        start = getattr(verifier_for(spec), "start", None)
        if start is not None:
            start()
    return DataVerifier()


def row_spec(name: Any, options: Any) -> dict[str, Any]:
    """The spec that a row names by its own fields. A data file names no code to import, and lifts no limit. Raises BadRowError."""
    given = {} if options is None else formats.plain(options)
    if isinstance(given, str):
        given = _object(given)
    if not isinstance(given, dict):
        raise BadRowError("field verifier_options is no object")
    given = {name: value for name, value in given.items() if value is not None}  # Arrow fills in the options of other rows
    if problem := row_verifier_problem(name, given):
        raise BadRowError(f"field verifier: {problem}; others are named by data.train")
    return {"name": name, "options": given}


def _object(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
