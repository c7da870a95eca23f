"""Verifiers of our own for datasets of Reasoning Gym whose verifiers execute what a policy writes, or pay for anything."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from megatron_entropic.tasks.arithmetic_puzzle import solves

OwnVerifier = Callable[[str, Mapping[str, Any], Any], float]
"""(answer, the dataset's entry, the dataset's config) -> score in [0, 1]; total."""

_NOT_A_NUMBER = re.compile(r"(?<![A-Za-z])nan[ij]?(?![A-Za-z])", re.IGNORECASE)


def _countdown(answer: str, entry: Mapping[str, Any], config: Any) -> float:
    metadata = entry["metadata"]
    return float(solves(answer, metadata["numbers"], metadata["target"], config.operators))


def _puzzle24(answer: str, entry: Mapping[str, Any], config: Any) -> float:
    """The package's own takes any four numbers."""
    return float(solves(answer, entry["metadata"]["numbers"], 24, config.operators))


def _word(answer: str, entry: Mapping[str, Any], config: Any) -> float:
    """One word, as the question asks for it: the package's own takes any text for True."""
    return float(answer.casefold() == str(entry["answer"]).casefold())


OWN_VERIFIERS: Mapping[str, OwnVerifier] = {"countdown": _countdown, "game_of_life_halting": _word, "puzzle24": _puzzle24}
"""By dataset, what judges answers instead of the package's verifier."""


def is_not_a_number(answer: str, entry: Mapping[str, Any]) -> bool:
    """Whether an answer holds a NaN that the known one does not: verifiers that measure a distance take it for none."""
    return _NOT_A_NUMBER.search(answer) is not None and _NOT_A_NUMBER.search(str(entry.get("answer"))) is None
