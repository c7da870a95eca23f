r"""Whether two expressions are the same function: read by math-verify's parser, compared at points with 50 digits.

math-verify's own comparison rounds absolutely (1/2004! is 1/2006! to it) and takes letters in any case, so it only has the last
word on what is no expression: sets described by conditions and the like. Nothing here is bounded in time: run it in a process
that is (tasks/verification).
"""

import logging
import random
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

_DIGITS = 50
_AGREE = 40
"""Leading digits that must agree."""
_POINTS = 6
_UNREADABLE = re.compile(r"(?<![_^\d])\d+ \d|[A-Za-z]{3,}|[^\x00-\x7f]|[\"@;?%]")
"""Input that the parser would misread: two numbers as their sum, a word as the product of its letters."""
_LOST = re.compile(r"\\(?:text|pm|mp)(?![A-Za-z])|\d\s*_|'|#|:|\^\s*\{?\s*T(?![A-Za-z])")
"""Input that the parser drops, or gives another meaning."""
_IMAGINARY = re.compile(r"(?<![A-Za-z\\_])i(?![A-Za-z])")
_CAPITAL_I = re.compile(r"(?<![A-Za-z\\])I(?![A-Za-z])")
"""The parser takes I for the imaginary unit, which people write i."""


def readable(text: str) -> bool:
    """Whether `plain` text may be given to the parser."""
    commands_gone = re.sub(r"\\[A-Za-z]+", "#", text)
    return bool(text) and not _LOST.search(text) and not _UNREADABLE.search(commands_gone)


def same_expression(first: str, second: str) -> bool:
    """Whether two `plain` texts are equal expressions; False when either cannot be read."""
    a, b = _both(first, second)
    if a is None or b is None:
        return False
    if _is_expression(a) and _is_expression(b):
        return _proportional(a, b, ratio_one=True)
    return _verified(a, b)


def same_relation(first: tuple[str, str], second: tuple[str, str], *, directed: bool) -> bool:
    """Whether left - right of both differ by a constant factor only; a positive one when `directed` (inequalities)."""
    (a, b), (c, d) = _both(*first), _both(*second)
    if not all(map(_is_expression, (a, b, c, d))):
        return False
    return _proportional(a - b, c - d, ratio_one=False, directed=directed)


def decimal_value(text: str, digits: int) -> str | None:
    """The value of a `plain` constant with `digits` significant digits, as a decimal; None when it is none."""
    from sympy import N

    expression = _parsed(text, complex_numbers=False)
    if not _is_expression(expression) or expression.free_symbols:
        return None
    value = N(expression.doit(), digits)
    return str(value) if value.is_Float else None


def forget() -> None:
    """Drops what was parsed before: for benchmarks."""
    _parsed.cache_clear()


def _both(first: str, second: str) -> tuple[Any, Any]:
    complex_numbers = _IMAGINARY.search(first + " " + second) is not None
    return _parsed(first, complex_numbers), _parsed(second, complex_numbers)


@lru_cache(maxsize=4096)
def _parsed(text: str, complex_numbers: bool) -> Any:
    """The sympy object, decimals made exact; None when the parser refuses."""
    from latex2sympy2_extended import latex2sympy
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig
    from sympy import Float, I, Rational, Symbol

    if not readable(text):
        return None
    symbolic = _CAPITAL_I.sub(lambda _: r"\Upsilon ", text)
    logging.disable(logging.WARNING)  # the parser warns of every text it cannot read
    try:
        found = latex2sympy(
            symbolic,
            is_real=not complex_numbers,
            convert_degrees=False,
            normalization_config=None,
            conversion_config=ConversionConfig(lowercase_symbols=False),
        )
        if not _letters(text) <= set(str(found)) | {"d", "e"}:
            return None
        exact = {number: Rational(str(number)) for number in found.atoms(Float)}
        unit = {} if r"\sum" in text or r"\prod" in text else {Symbol("i", real=known): I for known in (None, True, False)}
        return found.xreplace(exact | unit)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - a parser of text that a policy wrote: whatever it raises, it cannot read it
        return None
    finally:
        logging.disable(logging.NOTSET)


def _letters(text: str) -> set[str]:
    """Variables of one letter, outside of commands and of what they lower."""
    return set(re.findall("[A-HJ-Za-z]", re.sub(r"\\[A-Za-z]+|_\{[^{}]*\}|_.", " ", text)))


def _is_expression(found: Any) -> bool:
    from sympy import Expr

    return isinstance(found, Expr)


def _proportional(a: Any, b: Any, *, ratio_one: bool, directed: bool = False) -> bool:
    """Whether a / b is the same number at every point (1 if `ratio_one`, positive if `directed`). One point decides on a no."""
    from mpmath import mpc, mpf, workdps

    if a == b:
        return not a.has(*_not_finite())
    try:
        a, b = a.doit(), b.doit()
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - sympy gives up on some of what a policy writes, in many ways
        return False
    symbols = sorted(a.free_symbols | b.free_symbols, key=str)
    ratio, agreed = None, 0
    for point in _points(symbols) if symbols else [{}]:
        values = _value(a, point), _value(b, point)
        if None in values:
            continue
        x, y = values
        if x == 0 or y == 0:
            if x != y and not _vanishes(a, b, x, y, ratio_one):
                return False
            agreed += 1
            continue
        ratio = ratio if ratio is not None else mpc(1) if ratio_one else x / y
        with workdps(_DIGITS):
            if abs(x / y - ratio) > abs(ratio) * mpf(10) ** -_AGREE:
                return False
        agreed += 1
    if ratio is not None and directed and not (ratio.real > 0 and abs(ratio.imag) < 1e-30):
        return False
    return agreed >= (3 if symbols else 1) and not (ratio_one and _differs_beyond(a - b, symbols))


def _differs_beyond(difference: Any, symbols: Sequence[Any]) -> bool:
    """Whether a difference that 50 digits do not show is not 0: what stands on both sides is gone from it."""
    from sympy import N

    at = difference.xreplace(_points(symbols)[0]) if symbols else difference
    value = N(at, 15, maxn=80)
    return bool(value.is_Float and value != 0 and value._prec > 1)


def _vanishes(a: Any, b: Any, x: Any, y: Any, ratio_one: bool) -> bool:
    """Whether the one of two values that is not 0 is 0 all the same, by proof: cancellation left a rest of it."""
    from sympy import simplify

    return bool(ratio_one and abs(x - y) < 10**-_AGREE and simplify(a - b) == 0)


def _value(expression: Any, point: dict[Any, Any]) -> Any:
    """The complex number (mpmath's) to 50 digits; None where there is none."""
    from mpmath import mpc, mpf, workdps
    from sympy import N

    try:
        parts = N(expression.xreplace(point), _DIGITS).as_real_imag()
        if not all(part.is_Float or part.is_Integer for part in parts):
            return None
        with workdps(_DIGITS):
            return mpc(*(mpf(str(part)) for part in parts))
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - as in _proportional
        return None


def _points(symbols: Sequence[Any]) -> list[dict[Any, Any]]:
    """Points of large-denominator rationals, of all signs, the same every time."""
    from sympy import Rational

    draw = random.Random(" ".join(map(str, symbols)))
    signs = [1, 1, -1, 1, -1, 1]
    return [
        {symbol: Rational(signs[(number + place) % _POINTS] * draw.randint(101, 999), 211) for place, symbol in enumerate(symbols)}
        for number in range(_POINTS)
    ]


def _not_finite() -> tuple[Any, ...]:
    from sympy import nan, zoo

    return nan, zoo


def _verified(gold: Any, answer: Any) -> bool:
    """math-verify's verdict on two things of one kind that are no expressions."""
    from math_verify import verify

    return type(gold) is type(answer) and bool(verify(gold, answer, timeout_seconds=None))
