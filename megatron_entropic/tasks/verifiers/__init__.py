"""Verifiers of rows: one file a kind, one table (config/verifiers.py)."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from megatron_entropic.config.verifiers import VERIFIER_ENTRY_POINTS, VERIFIERS
from megatron_entropic.system.named_functions import check_name, named_function, raised
from megatron_entropic.tasks.verifiers.contract import RowVerifier
from megatron_entropic.tasks.verifiers.function import FunctionVerifier


def make_verifier(name: str, options: Mapping[str, Any]) -> RowVerifier:
    """The verifier `name` with its options.

    From outside the package a class is called with `options` and gives a RowVerifier; a function is the reward itself,
    called as function(response, answer, row, **options). Raises ValueError naming a bad name or option.
    """
    try:
        found = check_name(name, VERIFIERS, VERIFIER_ENTRY_POINTS)
    except ValueError as error:
        raise ValueError(f"verifier {name!r} {error}") from None
    make: Callable[..., Any] = named_function("verifier", found, VERIFIERS, VERIFIER_ENTRY_POINTS)
    if name in VERIFIERS:
        made: RowVerifier = make(options)
        return made
    if not inspect.isclass(make):
        return FunctionVerifier(found, make, options)
    try:
        own: RowVerifier = _called(make, options)
    except (Exception, SystemExit) as error:
        raise ValueError(f"verifier {name}: {raised(error)}") from error
    return own


def _called(make: Callable[..., Any], options: Mapping[str, Any]) -> Any:
    return make(options)


def waits(verifier: RowVerifier) -> bool:
    """Whether an answer before it waits for others to compute, so that many at a time cost nothing here."""
    return bool(getattr(verifier, "waits", False))


__all__ = ["RowVerifier", "make_verifier", "waits"]
