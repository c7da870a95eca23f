"""One of several given answers, by its letter."""

import re
from collections.abc import Mapping
from typing import Any

from megatron_entropic.tasks.row_values import BadRowError
from megatron_entropic.tasks.verifiers.extraction import extracted, way_of
from megatron_entropic.tasks.verifiers.options import Options

_LETTER = re.compile(r"(?:option|choice|answer)?\s*[\s(*\[{]*([A-Z])(?![A-Za-z0-9'])", re.IGNORECASE)
_ARTICLE = re.compile(r"[aAI]\s+[A-Za-z]")
"""A word, not a letter of a choice."""


class MultipleChoice:
    """Scores 1 when the letter given is the known one."""

    reads: tuple[str, ...] = ()
    light = True

    def __init__(self, way: str, index_base: int | None) -> None:
        self.way, self.index_base = way, index_base

    def known_answer(self, text: str, row: Mapping[str, Any]) -> str:
        """The letter, in capitals: of `C`, `(C)`, `C. text`, or of a number where `index_base` says what A is."""
        text = text.strip()
        if text.isascii() and text.isdigit():
            if self.index_base is None:
                raise BadRowError(f"the answer {text[:20]!r} is a number, not a letter; index_base: 0 or 1 says which number A is")
            position = int(text[:6]) - self.index_base
            if not 0 <= position < 26:
                raise BadRowError(f"the answer {text[:20]!r} is the number of no letter with index_base {self.index_base}")
            return chr(ord("A") + position)
        if (letter := _letter(text)) is None:
            raise BadRowError(f"the answer {text[:60]!r} begins with no letter of a choice")
        return letter

    def response_of(self, answer: str) -> str:
        """The letter, where it is looked for."""
        return {"tags": f"<answer>{answer}</answer>", "box": rf"\boxed{{{answer}}}"}.get(self.way, answer)

    def score(self, answer: str, row: Mapping[str, Any], response: str) -> float:
        """1.0 or 0.0."""
        given = extracted(response, self.way)
        return float(given is not None and _letter(given) == answer)


def _letter(text: str) -> str | None:
    text = text.strip().removeprefix(r"\text{").strip()
    found = _LETTER.match(text)
    if found is None or _ARTICLE.match(text):
        return None
    return found[1].upper()


def make_choice(options: Mapping[str, Any]) -> MultipleChoice:
    """Options: extract (auto), index_base (0 or 1: the answers of the data are numbers, and this one is A)."""
    read = Options("choice", options, "extract", "index_base")
    base = options.get("index_base")
    if base is not None and (isinstance(base, bool) or base not in (0, 1)):
        raise read.wrong("index_base", "must be 0 or 1")
    return MultipleChoice(way_of(read), base)
