r"""Equations and inequalities in `plain` text: their sides, and the intervals that inequalities of one variable are."""

import re

from megatron_entropic.tasks.math_answers import algebra
from megatron_entropic.tasks.math_answers.plain import compact
from megatron_entropic.tasks.math_answers.structure import split

_SIGNS = {r"\le": "<=", r"\ge": ">=", "<": "<", ">": ">"}
_LETTER = r"(?:[A-Za-z]|\\(?:alpha|beta|gamma|delta|theta|lambda|mu|phi|omega|sigma|rho|tau|epsilon))"
_NAME = re.compile(
    rf"(?:(?:m\s*)?\\(?:angle|triangle|overline|vec|hat|bar)\s*\{{?\s*)?"
    rf"{_LETTER}+\}}?'*(?:_\{{?\w+\}}?)?(?:\^\{{-1\}})?'*(?:\([\w ,]+\))?"
    rf"|\({_LETTER}(?:,\s*{_LETTER})+\)|\\text\{{[A-Za-z' ]+\}}(?:\([\w ,]+\))?"
)


def is_name(text: str) -> bool:
    r"""Whether `plain` text only names something: x, x_1, f(x), (x,y), AB, \text{Area}, \theta."""
    return _NAME.fullmatch(text.strip()) is not None


def equation_sides(text: str) -> list[str]:
    """The parts between the equals signs outside of brackets; one part when there are none."""
    return split(text, "=")


def relation_of(text: str) -> list[str]:
    """[side, sign, side, ...] of an inequality, signs as in Python; empty when there is none."""
    parts: list[str] = []
    for piece in re.split(r"(\\le(?![A-Za-z])|\\ge(?![A-Za-z])|<|>)", text):
        parts.append(_SIGNS.get(piece, piece.strip()))
    return parts if len(parts) > 1 and not text.startswith(r"\{") else []


def as_interval(text: str) -> tuple[str, str] | None:
    r"""(name, interval in `plain` text) of an inequality in one name, or of an interval (name "" or what \in gives it)."""
    parts = relation_of(text)
    if not parts:
        name, *rest = split(text, r"\in")
        return (compact(name), rest[0]) if len(rest) == 1 and is_name(name) else ("", text)
    if "or" in re.findall(r"[a-z]+", text) or r"\text{or}" in compact(text):
        pieces = [as_interval(piece.strip()) for piece in re.split(r"\\text\{\s*or\s*\}|\bor\b", text)]
        if None in pieces or len({piece[0] for piece in pieces if piece}) != 1:
            return None
        return next(piece[0] for piece in pieces if piece), r" \cup ".join(piece[1] for piece in pieces if piece)
    return _interval(parts)


def _interval(parts: list[str]) -> tuple[str, str] | None:
    if any(len(split(part, ",")) > 1 for part in parts[::2]):
        return None
    if len(parts) == 3:
        left, sign, right = parts
        if is_name(right) and not is_name(left):
            left, sign, right = right, {"<": ">", ">": "<", "<=": ">=", ">=": "<="}[sign], left
        if not is_name(left):
            return None
        closing = "]" if sign == "<=" else ")"
        opening = "[" if sign == ">=" else "("
        return compact(left), rf"(-\infty, {right}{closing}" if sign[0] == "<" else rf"{opening}{right}, \infty)"
    if len(parts) != 5 or parts[1][0] != parts[3][0] or not is_name(parts[2]):
        return None
    low, first, name, second, high = parts if parts[1][0] == "<" else parts[::-1]
    return compact(name), f"{'[' if '=' in first else '('}{low}, {high}{']' if '=' in second else ')'}"


def same_inequality(gold: str, given: str) -> bool:
    """Whether two inequalities in several variables are one: the same up to sides and a positive factor."""
    known, other = relation_of(gold), relation_of(given)
    if len(known) != 3 or len(other) != 3 or ("=" in known[1]) != ("=" in other[1]):
        return False
    first, second = (known[0], known[2]), (other[0], other[2])
    if known[1][0] != other[1][0]:
        second = second[::-1]
    return algebra.same_relation(first, second, directed=True)
