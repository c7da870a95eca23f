"""Answers in words, and the letters of choices."""

import re
from collections.abc import Callable
from dataclasses import dataclass

_CHOICE = re.compile(r"(?:\(\s*)?([A-Ha-h])\s*(?:\)|(?<=[A-H])\s*[.:]|(?<=[A-H])$)\s*(.*)", re.DOTALL)
_ANOTHER = re.compile(r"(?:^|[^A-Za-z])\(?[A-H]\)|\b(?:and|or|not)\b|^[A-H](?:$|[\s,.])")
_WORDS = re.compile(r"[^\W\d_](?:[^\W_]|[ '\-/.&])*[^\W_]|[^\W\d_]")


@dataclass(frozen=True)
class Choice:
    """The letter of a choice, and what stands beside it (`plain` text, often nothing)."""

    letter: str
    beside: str


def choice_of(gold: str) -> Choice | None:
    """The choice that a `plain` known answer is: C, (C), (C) 12, C: 12."""
    flat = _flat(gold)
    if re.fullmatch(r"[a-h]", flat):
        return None  # a variable
    match = _CHOICE.fullmatch(flat)
    return Choice(match[1].upper(), match[2].strip()) if match else None


def same_choice(gold: Choice, given: str, same: Callable[[str, str], bool]) -> bool:
    """Whether a `plain` answer is that choice and no other; `same` compares what stands beside the letters."""
    flat = _flat(given)
    if re.fullmatch(r"[A-Ha-h]", flat):
        return flat.upper() == gold.letter
    match = _CHOICE.fullmatch(flat)
    if match is None:
        return bool(gold.beside) and same(gold.beside, given)
    letter, beside = match[1].upper(), match[2].strip()
    if letter != gold.letter or _ANOTHER.search(beside):
        return False
    return not gold.beside or not beside or same(gold.beside, beside)


def is_words(text: str) -> bool:
    """Whether `plain` text is words, of two letters or more: not a variable, not an expression."""
    flat = _flat(text)
    return len(flat) > 1 and _WORDS.fullmatch(flat) is not None and not text.startswith("\\sqrt")


def same_words(gold: str, given: str) -> bool:
    """Whether two texts are the same words: letter for letter, in any case."""
    return _letters(gold) == _letters(given)


def _flat(text: str) -> str:
    r"""Without \text{}; what it held stays."""
    return " ".join(re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text).split())


def _letters(text: str) -> str:
    return _flat(text).casefold().strip(" .,;:!'\"")
