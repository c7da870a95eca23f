r"""Whether two single values are the same: exact where both are rational, by algebra where not, in words, ratios and other bases."""

import math
import re
from collections.abc import Sequence
from fractions import Fraction

from megatron_entropic.tasks.math_answers import algebra
from megatron_entropic.tasks.math_answers.numbers import TooLargeError, approximates, is_decimal, rational
from megatron_entropic.tasks.math_answers.plain import compact
from megatron_entropic.tasks.math_answers.structure import split
from megatron_entropic.tasks.math_answers.units import without_unit
from megatron_entropic.tasks.math_answers.words import is_words, same_words


def same_value(gold: str, given: str) -> bool:
    """One value each: exact when both are rational, else by algebra. Units may be left out, not exchanged."""
    if compact(gold) == compact(given):
        return True
    (gold, unit), (given, other) = without_unit(gold), without_unit(given)
    if unit and other and unit != other:
        return False
    if is_words(gold):
        return same_words(gold, given)
    based = _in_base(gold), _in_base(given)
    if any(based):
        return _without_base_ten(gold) == _without_base_ten(given)
    if len(split(gold, ":")) > 1 or len(split(given, ":")) > 1:
        return _same_ratio(gold, given)
    try:
        known, value = rational(gold), rational(given)
    except TooLargeError:
        return False
    if known is not None and value is not None:
        return _same_number(known, value, unit, other) or _approximates(gold, known, given)
    if value is not None and is_decimal(given):
        return _rounds_to(gold, given)
    if known is not None and _has_variables(given):
        return False
    return algebra.same_expression(gold, given)


def _same_number(known: Fraction, value: Fraction, unit: str, other: str) -> bool:
    """A percentage may come without its sign, or as the fraction it is."""
    return known == value or (unit == "%" and not other and known == value * 100)


def _approximates(gold: str, known: Fraction, given: str) -> bool:
    """Whether a long decimal stands for a known fraction that no decimal equals."""
    return (
        is_decimal(given)
        and not is_decimal(gold)
        and 10 ** known.denominator.bit_length() % known.denominator != 0
        and approximates(given, known)
    )


def _rounds_to(gold: str, decimal: str) -> bool:
    value = algebra.decimal_value(gold, len(decimal) + 15) if algebra.readable(gold) and not _has_variables(gold) else None
    exact = None if value is None else rational(value)
    return exact is not None and approximates(decimal, exact)


def _has_variables(text: str) -> bool:
    """Whether letters other than constants' stand in `plain` text."""
    letters = re.sub(r"\\[A-Za-z]+|\\begin\{\w+\}", " ", text) if not re.search(r"\\(?:sum|int|prod|lim)", text) else ""
    return re.search(r"[A-DF-HJ-Za-df-hj-z]", letters) is not None


def _in_base(text: str) -> re.Match[str] | None:
    return re.fullmatch(r"([0-9A-Fa-f]+)\s*_\s*\{?\s*(?:\\text\{)?\s*(\d+|[a-z]+)\s*\}?\s*\}?", text)


def _without_base_ten(text: str) -> str:
    based = _in_base(text)
    if based is None:
        return compact(text)
    return based[1] if based[2] in ("10", "ten") else f"{based[1].upper()}_{based[2]}"


def _same_ratio(gold: str, given: str) -> bool:
    """3:4 is 6:8 and 3/4. A time of day, which also has a colon, only equals itself."""
    if re.fullmatch(r"\d{1,2}:\d\d", gold) and not _coprime(gold.split(":")):
        return False
    known, other = _terms(gold), _terms(given)
    if known is None or other is None:
        return False
    if 1 in (len(known), len(other)):  # a fraction for a ratio of two
        known, other = (terms if len(terms) > 1 else [*terms, Fraction(1)] for terms in (known, other))
    return len(known) == len(other) and all(k * other[0] == o * known[0] for k, o in zip(known, other, strict=True))


def _terms(ratio: str) -> list[Fraction] | None:
    """The numbers between the colons; None when one is none, or 0."""
    try:
        terms = [rational(part) for part in split(ratio, ":")]
    except TooLargeError:
        return None
    return [term for term in terms if term] if all(terms) else None


def _coprime(parts: Sequence[str]) -> bool:
    return not parts[1].startswith("0") and math.gcd(int(parts[0]), int(parts[1])) == 1
