r"""The outer form of an answer: one value, or several in brackets of some kind, a union of intervals, a matrix."""

import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["value", "bare", "set", "(", "[", "(]", "[)", "union", "matrix", "row"]

_OPENING, _CLOSING = "([{", ")]}"
_TOKEN = re.compile(r"\\[{}]|\\\\|\\[A-Za-z]+|\\.|.", re.DOTALL)
_MATRIX = re.compile(r"\\begin\{([pb]?matrix|array)\}(?:\{[lcr|]*\})?(.*)\\end\{\1\}", re.DOTALL)
_JOINED = re.compile(r"\s*,?\s*(?:\\text\{\s*,?\s*(?:and|or)\s*,?\s*\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])|;)\s*,?\s*")
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d+)?")


@dataclass(frozen=True)
class Form:
    """`items` are `plain` texts. "bare" is a list without brackets; "value" has one item; rows of a matrix are joined by &."""

    kind: Kind
    items: tuple[str, ...]


def form_of(text: str) -> Form:
    """The outer form of `plain` text."""
    text = text.strip()
    if matrix := _MATRIX.fullmatch(text):
        rows = [row for row in re.split(r"\\\\", matrix[2]) if row.strip()]
        return Form("matrix", tuple(row.strip() for row in rows))
    if text in (r"\emptyset", r"\{\}"):
        return Form("set", ())
    if len(union := split(text, r"\cup")) > 1:
        return Form("union", tuple(union))
    listed = _JOINED.sub(", ", text) if _joins_values(text) else text
    if len(items := split(listed, ",")) > 1 and not _THOUSANDS.fullmatch(text):
        return Form("bare", tuple(item for item in items if item))
    return _bracketed(text) or Form("value", (text,))


def split(text: str, separator: str) -> list[str]:
    """The parts between separators that are outside of all brackets, stripped. ( closes with ] too: intervals."""
    parts, depth, start = [], 0, 0
    for token in _TOKEN.finditer(text):
        bare = token[0].removeprefix("\\") if token[0] in (r"\{", r"\}") else token[0]
        if len(bare) == 1 and bare in _OPENING:
            depth += 1
        elif len(bare) == 1 and bare in _CLOSING:
            depth -= 1
        elif depth == 0 and token[0] == separator and not _groups_digits(text, token.start()):
            parts.append(text[start : token.start()].strip())
            start = token.end()
    return [*parts, text[start:].strip()]


def _groups_digits(text: str, comma: int) -> bool:
    """Whether the comma at this index is one of a number alone between others: 1,000, 2,000 keeps its commas, 1,2 does not."""
    return text[comma] == "," and re.match(r",\d{3}(?![\d,])(?=\s|$|\.)", text[comma:]) is not None and bool(
        re.search(r"(?:^|, )[+-]?\d{1,3}(?:,\d{3})*$", text[:comma])
    ) and ", " in text  # fmt: skip


def _joins_values(text: str) -> bool:
    return _JOINED.search(text) is not None


def _bracketed(text: str) -> Form | None:
    """The form of a text that one pair of brackets encloses."""
    if text.startswith(r"\{") and text.endswith(r"\}") and _closes_at_end(text):
        inside = text[2:-2].strip()
        if len(split(inside, "|")) > 1 or len(split(inside, ":")) > 1:
            return None
        return Form("set", tuple(item for item in split(_JOINED.sub(", ", inside), ",") if item))
    if text[:1] not in ("(", "[") or text[-1:] not in (")", "]") or not _closes_at_end(text):
        return None
    items = split(text[1:-1], ",")
    if len(items) == 1:
        return form_of(text[1:-1]) if text[0] == "(" and text[-1] == ")" else None
    kinds: dict[str, Kind] = {"()": "(", "[]": "[", "(]": "(]", "[)": "[)"}
    return Form(kinds[text[0] + text[-1]], tuple(items))


def _closes_at_end(text: str) -> bool:
    """Whether the bracket that opens the text is closed by its last one."""
    depth, end = 0, len(text) - (2 if text.endswith(r"\}") else 1)
    for token in _TOKEN.finditer(text):
        bare = token[0].removeprefix("\\") if token[0] in (r"\{", r"\}") else token[0]
        depth += (len(bare) == 1 and bare in _OPENING) - (len(bare) == 1 and bare in _CLOSING)
        if depth == 0:
            return token.start() == end
    return False
