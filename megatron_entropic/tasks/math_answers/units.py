r"""The unit behind a value: 10\text{ cm}, 5 m/s, 18.90 dollars, 90^\circ, 12%. A unit left out is no mistake, another one is."""

import re

_MAGNITUDES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_OTHER_WORDS = """
or and not more less fewer than least most about maybe perhaps between to from mod if when for where otherwise approximately
almost nearly around roughly rather but either neither nor over under above below only at is are was any all some no with by
plus minus times divided half double twice dozen squared cubed factorial root"""
_NOT_UNITS = frozenset(_OTHER_WORDS.split())
"""Words behind a number that say something else about it."""
_KNOWN_UNITS = """
mm cm dm m km in ft yd mi g kg mg lb oz s sec ms min h hr hrs hz khz l ml j kj w kw v a n pa k c f mol mph kph rad deg m/s km/h
ft/s mi/h cm/s m/s^2 m^2 cm^2 km^2 ft^2 in^2 mm^2 m^3 cm^3 ft^3 in^3"""
_KNOWN = frozenset(_KNOWN_UNITS.split())
_SYNONYMS = {
    "meter": "m", "metre": "m", "centimeter": "cm", "centimetre": "cm", "millimeter": "mm", "millimetre": "mm", "kilometer": "km",
    "kilometre": "km", "inche": "in", "inch": "in", "foot": "ft", "feet": "ft", "yard": "yd", "mile": "mi", "gram": "g",
    "kilogram": "kg", "pound": "lb", "ounce": "oz",
    "second": "s", "sec": "s", "minute": "min", "hour": "h", "hr": "h", "liter": "l", "litre": "l",
    "degree": "°", "percent": "%", "per cent": "%", "dollar": "", "usd": "", "unit": "", "square unit": "", "sq unit": "",
    "cubic unit": "", "units^2": "", "units^3": "", "unit^2": "", "unit^3": "", "mile per hour": "mph", "radian": "rad",
    "meters per second": "m/s", "meter per second": "m/s", "mi/h": "mph",
}  # fmt: skip
_POWERS = {"square": "^2", "sq": "^2", "cubic": "^3", "cu": "^3"}
_TAIL = re.compile(
    r"(?P<value>.*?[\d)}!\]a-z])\s*(?P<unit>%|\\degree(?:\s*C|\s*F)?|\\text\{[^{}]*\}(?:\s*/\s*\\text\{[^{}]*\})?(?:\s*\^\s*\{?[23]\}?)?)"
    r"(?:\s*\([^()\d]*\))?"
)
_PLAIN_TAIL = re.compile(r"(?P<value>.*[\d)}!\]])(?P<space>\s*)(?P<unit>[A-Za-z][A-Za-z ]*(?:/\s*[A-Za-z]+)?(?:\^\s*\{?[23]\}?)?)")
_CURRENCY = re.compile(r"(?P<unit>[€£¥₹])\s*(?P<value>[\d.].*)|(?P<value2>.*\d)\s*(?P<unit2>[€£¥₹])")


def without_unit(text: str) -> tuple[str, str]:
    """(`plain` value, its unit in one spelling, "" for none). Words of size become powers of ten: 5 million is 5 * 10^6."""
    if money := _CURRENCY.fullmatch(text):
        return (money["value"] or money["value2"]).strip(), money["unit"] or money["unit2"]
    note = re.fullmatch(r"(.*\d)\s+\((?:\\text\{)?[A-Za-z ]{3,}\}?\)|(.*\d)\s*\\text\{\s*\([A-Za-z ]{3,}\)\s*\}", text)
    if note:
        return without_unit((note[1] or note[2]).strip())
    tail = _TAIL.fullmatch(text) or _PLAIN_TAIL.fullmatch(text)
    if tail is None:
        return text, ""
    words = _unit_words(tail["unit"])
    if words is None or (tail["unit"][0].isalpha() and not _is_plain_unit(words, apart=bool(tail["space"]))):
        return text, ""
    value = tail["value"].strip()
    first, _, rest = words.partition(" ")
    if first in _MAGNITUDES:
        return rf"({value})\cdot 10^{{{_MAGNITUDES[first]}}}", canonical(rest.removeprefix("of ").strip())
    return value, canonical(words)


def canonical(unit: str) -> str:
    """One spelling of a unit."""
    unit = re.sub(r"\^\s*\{?([23])\}?", r"^\1", re.sub(r"\s*/\s*", "/", " ".join(unit.lower().split())))
    head, _, rest = unit.partition(" ")
    if head in _POWERS and rest and canonical(rest):
        return canonical(rest) + _POWERS[head]
    for spelling in (unit, unit.removesuffix("s"), unit.replace("s per", " per")):
        if spelling in _SYNONYMS:
            return _SYNONYMS[spelling]
    base, power, exponent = unit.partition("^")
    if power and (base in _SYNONYMS or base.removesuffix("s") in _SYNONYMS):
        return canonical(base) + power + exponent
    if "/" in unit:
        return "/".join(map(canonical, unit.split("/")))
    return unit.removesuffix("s") if len(unit) > 3 else unit


def _unit_words(unit: str) -> str | None:
    """The unit's words; None when they say something else about the value."""
    words = re.sub(r"\\text\{([^{}]*)\}", r"\1", unit).replace(r"\degree", "degree ").strip(" .,")
    says_more = any(word in _NOT_UNITS for word in re.findall(r"[a-z]+", words.lower()))
    if says_more or re.search(r"\d", re.sub(r"\^\s*\{?[23]\}?", "", words)):
        return None
    return words.lower() if len(words.split()) <= 4 else None


def _is_plain_unit(words: str, *, apart: bool) -> bool:
    """Whether words without \\text{} are a unit: single letters only when they are known ones, and apart from the value."""
    if not apart:
        return words in _KNOWN and len(words) > 1
    parts = re.split(r"[ /]", re.sub(r"\^\s*\{?[23]\}?", "", words))
    return words in _KNOWN or all(part in _KNOWN or len(part) > 2 for part in parts)
