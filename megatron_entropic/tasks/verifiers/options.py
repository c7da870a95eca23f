"""Reading a verifier's options: every name known, every value of its type, and errors that say what to write instead."""

import re
from collections.abc import Mapping
from typing import Any

from megatron_entropic.tasks.options import did_you_mean


class Options:
    """The options of the verifier `name`, which has those in `known`. Raises ValueError naming the first that it does not have."""

    def __init__(self, name: str, given: Mapping[str, Any], *known: str) -> None:
        self.name, self._given = name, given
        for option in given:
            if option not in known:
                has = f"it has: {', '.join(known)}" if known else "it has none"
                raise ValueError(f"verifier {name}: no option {option!r}{did_you_mean(option, known)} ({has})")

    def wrong(self, option: str, needed: str) -> ValueError:
        """The error for an option's value, saying what is needed."""
        return ValueError(f"verifier {self.name}: {option}={self._given.get(option)!r}: {needed}")

    def text(self, option: str, default: str | None = None, *, one_of: tuple[str, ...] = ()) -> str:
        """A text; needed where there is no default."""
        value = self._given.get(option, default)
        if not isinstance(value, str) or (default is None and not value):
            raise self.wrong(option, "text is needed")
        if one_of and value not in one_of:
            raise self.wrong(option, f"must be one of {', '.join(one_of)}{did_you_mean(value, one_of)}")
        return value

    def flag(self, option: str, default: bool = False) -> bool:
        """true or false."""
        value = self._given.get(option, default)
        if not isinstance(value, bool):
            raise self.wrong(option, "must be true or false")
        return value

    def number(self, option: str, default: float, *, at_least: float = 0.0, at_most: float = 1e9) -> float:
        """A number within bounds."""
        value = self._given.get(option, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not at_least <= value <= at_most:
            raise self.wrong(option, f"must be a number from {at_least:g} to {at_most:g}")
        return float(value)

    def integer(self, option: str, default: int, *, at_least: int = 0, at_most: int = 10**9) -> int:
        """A whole number within bounds."""
        value = self._given.get(option, default)
        if isinstance(value, bool) or not isinstance(value, int) or not at_least <= value <= at_most:
            raise self.wrong(option, f"must be a whole number from {at_least} to {at_most}")
        return value

    def mapping(self, option: str) -> Mapping[str, Any]:
        """A mapping; empty where it is not given."""
        value = self._given.get(option) or {}
        if not isinstance(value, Mapping):
            raise self.wrong(option, "must be a mapping")
        return value

    def pattern(self, option: str, default: str | None, flags: int = 0) -> re.Pattern[str]:
        """A regular expression."""
        text = self.text(option, default)
        try:
            return re.compile(text, flags)
        except re.error as error:
            raise self.wrong(option, f"is no regular expression: {error}") from None
