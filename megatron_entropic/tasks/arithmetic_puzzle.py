"""Answers to number puzzles (Countdown, 24): an expression of given numbers, each used once, that has a given value.

Read by a parser of our own and computed in exact fractions: nothing is executed, and nothing can take long.
"""

import re
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

_TOKEN = re.compile(r"\s*(?:([0-9]+)|([-+*/()]))")
_DEEPEST = 50
_MORE_DIGITS = 3
"""Digits by which a number may be longer than the longest given one and still be read."""


def solves(answer: str, numbers: Sequence[int], target: int, operators: Sequence[str] = "+-*/") -> bool:
    """Whether `answer` uses each of `numbers` exactly once, only `operators` (signs count) and brackets, and equals `target`.

    ASCII only: digits, + - * / ( ) and spaces; division is exact. Total: any text gets an answer.
    """
    tokens = _tokens(answer, most=20 * len(numbers) + 20)
    if tokens is None:
        return False
    used = [int(token) for token in tokens if token.isdigit() and len(token) <= len(str(max(numbers))) + _MORE_DIGITS]
    if Counter(used) != Counter(numbers) or len(used) != sum(map(str.isdigit, tokens)):
        return False
    if any(token in "+-*/" and token not in operators for token in tokens):
        return False
    try:
        return _Parser(tokens).value() == target
    except (ValueError, ZeroDivisionError):
        return False


def _tokens(text: str, most: int) -> list[str] | None:
    """Numbers, operators and brackets; None when anything else stands there, or more than `most`."""
    tokens: list[str] = []
    at, text = 0, text.strip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None or len(tokens) == most:
            return None
        tokens.append(match[1] or match[2])
        at = match.end()
    return tokens


class _Parser:
    """Recursive descent; raises ValueError for what is no expression."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self._tokens = [*tokens, ""]
        self._at = 0
        self._depth = 0

    def value(self) -> Fraction:
        value = self._sum()
        if self._tokens[self._at]:
            raise ValueError
        return value

    def _take(self, *wanted: str) -> str:
        token = self._tokens[self._at]
        if token and token in wanted:
            self._at += 1
            return token
        return ""

    def _sum(self) -> Fraction:
        value = self._product()
        while sign := self._take("+", "-"):
            value = value + self._product() if sign == "+" else value - self._product()
        return value

    def _product(self) -> Fraction:
        value = self._factor()
        while sign := self._take("*", "/"):
            value = value * self._factor() if sign == "*" else value / self._factor()
        return value

    def _factor(self) -> Fraction:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise ValueError
        value = self._atom()
        self._depth -= 1
        return value

    def _atom(self) -> Fraction:
        if sign := self._take("+", "-"):
            return self._factor() if sign == "+" else -self._factor()
        if self._take("("):
            value = self._sum()
            if not self._take(")"):
                raise ValueError
            return value
        token = self._tokens[self._at]
        if not token.isdigit():
            raise ValueError
        self._at += 1
        return Fraction(int(token))
