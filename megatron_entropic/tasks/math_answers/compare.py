r"""Whether an answer means the known one. The known answer's kind decides: a choice, words, a number, an expression, several values.

In doubt the answer is wrong: a reward for a wrong answer teaches it.
"""

from collections.abc import Sequence

from megatron_entropic.tasks.math_answers import algebra
from megatron_entropic.tasks.math_answers.plain import balanced, compact, plain
from megatron_entropic.tasks.math_answers.relations import as_interval, equation_sides, is_name, relation_of, same_inequality
from megatron_entropic.tasks.math_answers.structure import Form, form_of, split
from megatron_entropic.tasks.math_answers.values import same_value
from megatron_entropic.tasks.math_answers.words import choice_of, is_words, same_choice, same_words

_MOST_ITEMS = 50
_DEEPEST = 8


def answerable(known: str) -> bool:
    """Whether a known answer says anything an answer could equal."""
    text = plain(known)
    return balanced(text) and any(character.isalnum() for character in text)


def same(known: str, answer: str) -> bool:
    """Whether `answer`, as it stands in a box, means `known`."""
    gold, given = plain(known), plain(answer)
    if not gold or not given or not answerable(known):
        return False
    if (choice := choice_of(gold)) is not None:
        return same_choice(choice, given, _same)
    return _same(gold, given)


def _same(gold: str, given: str, depth: int = 0) -> bool:
    if compact(gold) == compact(given):
        return True
    if depth > _DEEPEST or r"\ldots" in gold + given:
        return False
    if is_words(gold):
        return same_words(gold, given)
    gold, given = _before_approximation(gold), _before_approximation(given)
    gold, given = _by_name(gold), _by_name(given)
    if relation_of(gold) or relation_of(given):
        return _same_inequality(gold, given, depth)
    if len(equation_sides(gold)) > 1 or len(equation_sides(given)) > 1:
        listed = form_of(gold).kind == "bare" or form_of(given).kind == "bare"
        return _same_assignments(gold, given, depth) if listed else _same_equation(gold, given, depth)
    gold, given = _without_membership(gold), _without_membership(given)
    return _same_form(_form(gold), _form(given), depth)


def _form(text: str) -> Form:
    """form_of, with a value of both signs as the two it is."""
    form = form_of(text if compact(text) != r"\mathbb{R}" else r"(-\infty, \infty)")
    if form.kind in ("value", "set") and len(form.items) == text.count(r"\pm") == 1 and r"\mp" not in text:
        value = form.items[0]
        return Form("set" if form.kind == "set" else "bare", (value.replace(r"\pm", "+"), value.replace(r"\pm", "-")))
    return form


_IN_SOME_ORDER: dict[str, tuple[str, ...]] = {"set": ("set", "bare"), "bare": ("bare", "set"), "union": ("union",)}
"""By the kind of the known answer, those of answers that may have its items in any order."""
_IN_ORDER: dict[str, tuple[str, ...]] = {"(": ("(", "bare"), "bare": ("(",), "[": ("[",), "(]": ("(]",), "[)": ("[)",)}
"""And those that must have them in its order."""


def _same_form(gold: Form, given: Form, depth: int) -> bool:
    one_each = len(gold.items) == len(given.items) == 1
    if one_each and {gold.kind, given.kind} <= {"value", "set"}:
        return same_value(gold.items[0], given.items[0])
    if gold.kind == given.kind == "matrix":
        rows = [tuple(split(row, "&")) for row in gold.items], [tuple(split(row, "&")) for row in given.items]
        return len(rows[0]) == len(rows[1]) and all(_all_same(known, row, depth) for known, row in zip(*rows, strict=True))
    if given.kind in _IN_SOME_ORDER.get(gold.kind, ()):
        return _same_in_some_order(gold.items, given.items, depth)
    return given.kind in _IN_ORDER.get(gold.kind, ()) and _all_same(gold.items, given.items, depth)


def _all_same(gold: Sequence[str], given: Sequence[str], depth: int) -> bool:
    return len(gold) == len(given) and all(_same(g, a, depth + 1) for g, a in zip(gold, given, strict=True))


def _same_in_some_order(gold: Sequence[str], given: Sequence[str], depth: int) -> bool:
    if len(gold) != len(given) or len(gold) > _MOST_ITEMS:
        return False
    left = list(given)
    for item in gold:
        match = next((index for index, other in enumerate(left) if _same(item, other, depth + 1)), None)
        if match is None:
            return False
        del left[match]
    return True


def _before_approximation(text: str) -> str:
    r"""The side before \approx, from which the other follows; the side behind it when the first is only a name."""
    head, *rest = split(text, r"\approx")
    return rest[0] if rest and is_name(head) else head


def _without_membership(text: str) -> str:
    name, *rest = split(text, r"\in")
    return rest[0] if len(rest) == 1 and is_name(name) else text


def _same_equation(gold: str, given: str, depth: int) -> bool:
    """One equation at least on one side. A value may come with or without the name it is given."""
    known, parts = equation_sides(gold), equation_sides(given)
    if len(known) > 2:
        known = [known[0], known[-1]]
    if len(known) == 1:
        values = parts[1:] if is_name(parts[0]) else parts[:-1] if is_name(parts[-1]) else parts
        return all(_same(gold, part, depth + 1) for part in values)
    if len(parts) == 1:
        return is_name(known[0]) and _same(known[1], given, depth + 1)
    if compact(parts[0]) == compact(known[0]):
        return all(_same(known[1], part, depth + 1) for part in parts[1:])
    if len(parts) == 2 and is_name(parts[1]) and compact(parts[1]) == compact(known[0]):
        return _same(known[1], parts[0], depth + 1)
    return len(parts) == 2 and algebra.same_relation((known[0], known[1]), (parts[0], parts[1]), directed=False)


def _same_assignments(gold: str, given: str, depth: int) -> bool:
    """Lists in which values have names: x=1, y=2 is (1,2); x=1 or x=-2 is {1,-2}; n=2,3,4 is three values of n."""
    (names, values), (other_names, others) = _assigned(gold), _assigned(given)
    if len(values) != len(others):
        return False
    distinct, other_distinct = len(set(names)) == len(names) > 1, len(set(other_names)) == len(other_names) > 1
    if distinct and other_distinct:
        paired = dict(zip(other_names, others, strict=True))
        return set(names) == set(other_names) and all(_same(v, paired[n], depth + 1) for n, v in zip(names, values, strict=True))
    if distinct or other_distinct:
        unnamed = given if distinct else gold
        return (
            not any(other_names if distinct else names) and form_of(unnamed).kind in ("(", "bare") and _all_same(values, others, depth)
        )
    if set(names) - {""} and set(other_names) - {""} and set(names) - {""} != set(other_names) - {""}:
        return False
    if form_of(gold).kind == "(" or (form_of(given).kind not in ("bare", "set")):
        return _all_same(values, others, depth)
    return _same_in_some_order(values, others, depth)


def _by_name(text: str) -> str:
    """(x,y)=(1,2) as x=1, y=2; other texts as they are."""
    sides = equation_sides(text)
    names, values = (form_of(side) for side in sides) if len(sides) == 2 else (None, None)
    if names is None or values is None or names.kind != "(" or values.kind != "(" or len(names.items) != len(values.items):
        return text
    return ", ".join(f"{name}={value}" for name, value in zip(names.items, values.items, strict=True))


def _assigned(text: str) -> tuple[list[str], list[str]]:
    """Names ("" where there is none) and values of a list's items."""
    names, values = [], []
    for item in form_of(text).items:
        sides = equation_sides(item)
        named = len(sides) == 2 and is_name(sides[0])
        names.append(compact(sides[0]) if named else "")
        values.append(sides[1] if named else item)
    if len(names) > 1 and names[0] and not any(names[1:]):
        names = [names[0]] * len(names)
    return names, values


def _same_inequality(gold: str, given: str, depth: int) -> bool:
    known, other = as_interval(gold), as_interval(given)
    if known is not None and other is not None:
        if known[0] and other[0] and known[0] != other[0]:
            return False
        return _same_form(form_of(known[1]), form_of(other[1]), depth)
    return same_inequality(gold, given)
