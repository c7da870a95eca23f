"""Verifiers of rows: one file a kind, one table (config/verifiers.py)."""

from collections.abc import Callable, Mapping
from typing import Any

from megatron_entropic.config.verifiers import VERIFIER_ENTRY_POINTS, VERIFIERS
from megatron_entropic.system.named_functions import check_name, named_function
from megatron_entropic.tasks.verifiers.contract import RowVerifier


def make_verifier(name: str, options: Mapping[str, Any]) -> RowVerifier:
    """The verifier `name` with its options. Raises ValueError naming a bad name or option."""
    try:
        found = check_name(name, VERIFIERS, VERIFIER_ENTRY_POINTS)
    except ValueError as error:
        raise ValueError(f"verifier {name!r} {error}") from None
    make: Callable[[Mapping[str, Any]], RowVerifier] = named_function("verifier", found, VERIFIERS, VERIFIER_ENTRY_POINTS)
    return make(options)


__all__ = ["RowVerifier", "make_verifier"]
