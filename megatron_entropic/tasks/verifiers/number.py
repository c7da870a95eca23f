"""A number, within a tolerance."""

import re
from collections.abc import Mapping
from decimal import Context, Decimal, InvalidOperation
from typing import Any

from megatron_entropic.tasks.row_values import BadRowError
from megatron_entropic.tasks.verifiers.extraction import extracted, way_of
from megatron_entropic.tasks.verifiers.options import Options

_NUMBER = re.compile(
    r"(?<![\w.])[-+−]?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,3}(?!\d))?(?: ?/ ?\d+(?![\d.]))?"
)
_LONGEST = 400
"""Characters of a number."""
_EXACT = Context(prec=1000, Emax=10**6, Emin=-(10**6))


class Number:
    """Scores 1 when the last number of what is extracted is the known one, give or take `absolute` or `relative` times it."""

    reads: tuple[str, ...] = ()
    light = True

    def __init__(self, way: str, absolute: float, relative: float) -> None:
        self.way, self.absolute, self.relative = way, Decimal(repr(absolute)), Decimal(repr(relative))

    def known_answer(self, text: str, row: Mapping[str, Any]) -> str:
        """The number after the last ####, or the text, which must be one."""
        text = text.rpartition("####")[2].strip()
        if _value(text.strip("$ %")) is None:
            raise BadRowError(f"the answer {text[:60]!r} is no number")
        return text

    def response_of(self, answer: str) -> str:
        """The number, where it is looked for."""
        return {"tags": f"<answer>{answer}</answer>", "box": rf"\boxed{{{answer}}}"}.get(self.way, answer)

    def score(self, answer: str, row: Mapping[str, Any], response: str) -> float:
        """1.0 or 0.0."""
        given = extracted(response, self.way)
        value, known = None if given is None else last_number(given), _value(answer.strip("$ %"))
        if value is None or known is None:
            return 0.0
        room = max(self.absolute, _EXACT.multiply(self.relative, abs(known)))
        return float(abs(_EXACT.subtract(value, known)) <= room)


def last_number(text: str) -> Decimal | None:
    """The value of the last number in a text; None when there is none."""
    last = None
    for last in _NUMBER.finditer(text):  # noqa: B007 - the last one is what is wanted
        pass
    return None if last is None else _value(last[0])


def _value(text: str) -> Decimal | None:
    """The value of a text that is one number, exact, but for a fraction: 1000 digits of it."""
    text = text.strip().replace("−", "-")
    if len(text) > _LONGEST or not _NUMBER.fullmatch(text):
        return None
    above, _, below = text.replace(",", "").partition("/")
    try:
        value = _EXACT.create_decimal(above.strip())
        value = _EXACT.divide(value, _EXACT.create_decimal(below.strip())) if below else value
    except (InvalidOperation, ZeroDivisionError):
        return None
    return value if value.is_finite() else None


def make_number(options: Mapping[str, Any]) -> Number:
    """Options: extract (auto), absolute (0), relative (0)."""
    read = Options("number", options, "extract", "absolute", "relative")
    return Number(way_of(read), read.number("absolute", 0.0), read.number("relative", 0.0))
