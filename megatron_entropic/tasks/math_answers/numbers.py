r"""Exact values of rational numbers as people write them: 1,000, 2\frac{1}{3}, 0.\overline{3}, 1.5\cdot10^{3}, \binom{10}{3}, 20!.

Every intermediate value has bounded size, so any text is decided at once.
"""

import math
import re
from fractions import Fraction

_MOST_BITS = 1 << 17
_MOST_FACTORIAL = 10_000
_DEEPEST = 200
_LITERAL = re.compile(r"(\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+\.?\d*|\.\d+)(?:\\overline\{(\d+)\})?(?:[eE]([+-]?\d+)(?![\d.]))?")
_MIXED = re.compile(r"([+-]?\d+) (\d+)/(\d+)")
_DECIMAL = re.compile(r"[+-]?\d*\.\d+")


class TooLargeError(ArithmeticError):
    """A number, or a step on the way to it, of more than 2**17 bits."""


class _NotANumberError(ValueError):
    """The text is something else."""


def rational(text: str) -> Fraction | None:
    """The exact value of `plain` text; None when it is no rational number or not written as one. Raises TooLargeError."""
    if mixed := _MIXED.fullmatch(text):
        whole, part = Fraction(mixed[1]), Fraction(int(mixed[2]), int(mixed[3])) if int(mixed[3]) else None
        return None if part is None else whole - part if mixed[1].startswith("-") else whole + part
    try:
        return _NumberReader(text).whole()
    except (_NotANumberError, ZeroDivisionError, RecursionError):
        return None


def is_decimal(text: str) -> bool:
    """Whether `plain` text is one number with decimals."""
    return _DECIMAL.fullmatch(text) is not None


def approximates(decimal: str, value: Fraction, at_least: int = 6) -> bool:
    """Whether a decimal of `at_least` significant digits is `value`, rounded or cut at its last digit."""
    digits = len(decimal.partition(".")[2])
    if len(decimal.lstrip("+-").replace(".", "").lstrip("0")) < at_least:
        return False
    scaled, shown = value * 10**digits, Fraction(decimal) * 10**digits
    return shown in (round(scaled), math.trunc(scaled))


class _NumberReader:
    """Recursive descent over one text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.depth = 0

    def whole(self) -> Fraction:
        value = self._sum()
        self._spaces()
        if self.at != len(self.text):
            raise _NotANumberError
        return value

    def _spaces(self) -> None:
        while self.text[self.at : self.at + 1] == " ":
            self.at += 1

    def _next(self, token: str) -> bool:
        self._spaces()
        if self.text.startswith(token, self.at):
            self.at += len(token)
            return True
        return False

    def _sum(self) -> Fraction:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise _NotANumberError
        value = self._signed()
        while True:
            if self._next("+"):
                value = _bounded(value + self._signed())
            elif self._next("-"):
                value = _bounded(value - self._signed())
            else:
                self.depth -= 1
                return value

    def _signed(self) -> Fraction:
        sign = 1
        while True:
            if self._next("-"):
                sign = -sign
            elif not self._next("+"):
                return sign * self._product()

    def _product(self) -> Fraction:
        start = self.at
        value = self._power()
        integer = self.text[start : self.at].strip().isdigit()
        while True:
            if self._next(r"\cdot"):
                value = _bounded(value * self._signed_factor())
            elif self._next("/"):
                value = _bounded(value / self._signed_factor())
            elif self._ahead(r"\frac"):  # 2\frac{1}{3} is mixed; anything else times a fraction is a product
                part = self._power()
                value = value + part if integer and 0 < part < 1 else _bounded(value * part)
            elif self._ahead("(") or self._ahead(r"\sqrt") or self._ahead(r"\binom"):
                value = _bounded(value * self._power())
            else:
                return value
            integer = False

    def _ahead(self, token: str) -> bool:
        self._spaces()
        return self.text.startswith(token, self.at)

    def _signed_factor(self) -> Fraction:
        sign = -1 if self._next("-") else 1
        return sign * self._power()

    def _power(self) -> Fraction:
        value = self._atom()
        while self._next("!"):
            if self._next("!") or value.denominator != 1 or value < 0:
                raise _NotANumberError
            if value > _MOST_FACTORIAL:
                raise TooLargeError
            value = Fraction(math.factorial(value.numerator))
        if self._next("^"):
            sign = -1 if self._next("-") else 1
            return _raised(value, sign * self._power())
        return value

    def _atom(self) -> Fraction:
        if self._next(r"\frac"):
            above, below = self._argument(), self._argument()
            return _bounded(above / below)
        if self._next(r"\binom"):
            return _binomial(self._argument(), self._argument())
        if self._next(r"\sqrt"):
            degree = self._group("[", "]") if self._ahead("[") else Fraction(2)
            return _raised(self._argument(), 1 / degree)
        for opening, closing in (("(", ")"), ("{", "}")):
            if self._ahead(opening):
                return self._group(opening, closing)
        self._spaces()
        if literal := _LITERAL.match(self.text, self.at):
            self.at = literal.end()
            return _literal_value(literal)
        raise _NotANumberError

    def _group(self, opening: str, closing: str) -> Fraction:
        self._next(opening)
        value = self._sum()
        if not self._next(closing):
            raise _NotANumberError
        return value

    def _argument(self) -> Fraction:
        """The argument of a command: a group, or one digit."""
        self._spaces()
        if self._ahead("{"):
            return self._group("{", "}")
        digit = self.text[self.at : self.at + 1]
        if not digit.isdigit():
            raise _NotANumberError
        self.at += 1
        return Fraction(digit)


def _literal_value(literal: re.Match[str]) -> Fraction:
    digits, repeated, exponent = literal[1].replace(",", ""), literal[2], literal[3]
    value = Fraction(digits if digits[-1] != "." else digits[:-1])
    if repeated:
        if "." not in digits:
            raise _NotANumberError
        places = len(digits.partition(".")[2])
        value += Fraction(int(repeated), 10**places * (10 ** len(repeated) - 1))
    if exponent:
        return _bounded(value * _raised(Fraction(10), Fraction(int(exponent) if len(exponent) < 20 else 10**20)))
    return value


def _raised(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        return _raised(_root(base, exponent.denominator), Fraction(exponent.numerator))
    power = exponent.numerator
    if base in (0, 1, -1):
        if base == 0 and power <= 0:
            raise _NotANumberError
        return base if base != -1 or power % 2 else Fraction(1)
    bits = max(abs(base.numerator).bit_length(), base.denominator.bit_length()) - 1
    if abs(power) * max(1, bits) > _MOST_BITS:
        raise TooLargeError
    return base**power


def _root(value: Fraction, degree: int) -> Fraction:
    """The exact root, of numbers that have one. Raises _NotANumberError for others."""
    if degree > 64 or value < 0:
        raise _NotANumberError
    above, below = _integer_root(value.numerator, degree), _integer_root(value.denominator, degree)
    if above**degree != value.numerator or below**degree != value.denominator:
        raise _NotANumberError
    return Fraction(above, below)


def _integer_root(value: int, degree: int) -> int:
    if degree == 2:
        return math.isqrt(value)
    low, high = 0, 1 << (value.bit_length() // degree + 1)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if middle**degree <= value else (low, middle - 1)
    return low


def _binomial(above: Fraction, below: Fraction) -> Fraction:
    if above.denominator != 1 or below.denominator != 1 or above < 0 or below < 0:
        raise _NotANumberError
    if above > _MOST_FACTORIAL:
        raise TooLargeError
    return Fraction(math.comb(above.numerator, below.numerator))


def _bounded(value: Fraction) -> Fraction:
    if max(abs(value.numerator).bit_length(), value.denominator.bit_length()) > _MOST_BITS:
        raise TooLargeError
    return value
