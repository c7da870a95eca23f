"""The form of a response: tags in their order, or a pattern that all of it fits. Rewards of what is in it are other verifiers'."""

import re
from collections.abc import Mapping
from typing import Any

from megatron_entropic.tasks.verifiers.options import Options

_TAG = re.compile(r"[A-Za-z][\w-]*")


class Tags:
    """Scores 1 when the response is these tags in this order, each opened and closed once, with text in it, and nothing beside them."""

    reads: tuple[str, ...] = ()
    light = True

    def __init__(self, tags: tuple[str, ...]) -> None:
        self.tags = tags

    def known_answer(self, text: str, row: Mapping[str, Any]) -> str:
        """Whatever is there."""
        return text.strip()

    def score(self, answer: str, row: Mapping[str, Any], response: str) -> float:
        """1.0 or 0.0. Linear in the response's length."""
        marks = [mark for tag in self.tags for mark in (f"<{tag}>", f"</{tag}>")]
        if any(response.count(mark) != 1 for mark in marks):
            return 0.0
        rest = response
        for number, mark in enumerate(marks):
            before, found, rest = rest.partition(mark)
            inside = number % 2 == 1
            if not found or bool(before.strip()) != inside:
                return 0.0
        return float(not rest.strip())


class Pattern:
    """Scores 1 when the whole response fits the pattern, in which . is any character."""

    reads: tuple[str, ...] = ()

    def __init__(self, pattern: re.Pattern[str]) -> None:
        self.pattern = pattern

    def known_answer(self, text: str, row: Mapping[str, Any]) -> str:
        """Whatever is there."""
        return text.strip()

    def score(self, answer: str, row: Mapping[str, Any], response: str) -> float:
        """1.0 or 0.0."""
        return float(self.pattern.fullmatch(response.strip()) is not None)


def make_format(options: Mapping[str, Any]) -> Tags | Pattern:
    """Options: tags ([think, answer]), or pattern."""
    read = Options("format", options, "tags", "pattern")
    if "pattern" in options:
        if "tags" in options:
            raise read.wrong("pattern", "tags and pattern exclude each other; give one")
        return Pattern(read.pattern("pattern", None, re.DOTALL))
    tags = options.get("tags", ("think", "answer"))
    if not isinstance(tags, list | tuple) or not tags or not all(isinstance(tag, str) and _TAG.fullmatch(tag) for tag in tags):
        raise read.wrong("tags", "must be a list of names, such as [think, answer]")
    if len(set(tags)) != len(tags):
        raise read.wrong("tags", "a name is there twice")
    return Tags(tuple(tags))
