"""Reading `task.options`: every name known, every value of its type, and errors that say what to write instead."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint naming the closest known name ("; did you mean ...?"), or nothing when none is close."""
    close = get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def refuse_unknown(task: str, options: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raises ValueError naming the first option that `task` does not have, and all it has."""
    names = sorted(known)
    for name in options:
        if name not in names:
            raise ValueError(
                f"task.options.{name}: task {task!r} has no such option{did_you_mean(name, names)} (it has: {', '.join(names)})"
            )


def integer(options: Mapping[str, Any], name: str, default: int, *, at_least: int, at_most: int) -> int:
    """Option `name` as an int within bounds. Raises ValueError naming the option, its value and the bounds."""
    value = options.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not at_least <= value <= at_most:
        raise ValueError(f"task.options.{name}={value!r}: must be an integer from {at_least} to {at_most}")
    return value


def text(options: Mapping[str, Any], name: str, default: str) -> str:
    """Option `name` as a str. Raises ValueError naming the option and its value."""
    value = options.get(name, default)
    if not isinstance(value, str):
        raise ValueError(f"task.options.{name}={value!r}: must be text, not {type(value).__name__}")
    return value


def fraction(options: Mapping[str, Any], name: str, default: float) -> float:
    """Option `name` as a number from 0 to below 1. Raises ValueError naming the option and its value."""
    value = options.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ValueError(f"task.options.{name}={value!r}: must be a number from 0 to below 1")
    return float(value)
