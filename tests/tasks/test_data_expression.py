"""Filters: what they may say, and that nothing else is ever run."""

from typing import Any

import pytest

from megatron_entropic.tasks.data.expression import Expression, ExpressionError

ROW: dict[str, Any] = {
    "level": 3,
    "rate": 0.25,
    "topic": "Plane Geometry",
    "tags": ["easy", "short"],
    "meta": {"year": 2024, "from": {"name": "AMC"}},
    "note": None,
}


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        ("level >= 3", True),
        ("1 < level <= 2", False),
        ("level in [1, 3] and rate not in (0.5, 1)", True),
        ("not (level == 3) or rate < 0.3", True),
        ("'geometry' in topic.lower()", True),
        ('topic.startswith("Plane") and topic.endswith("x")', False),
        ("len(tags) == 2 and 'easy' in tags and tags[-1] == 'short'", True),
        ("meta.year == 2024 and meta['from'].name != 'AIME'", True),
        ("note is None and missing is None and missing.deeper is None", True),
        ("note is not None", False),
        ("(level + 1) * 2 - 6 / 3 == 6 and level // 2 == 1 and -level % 2 == 1", True),
        ("max(level, 5) == 5 and abs(-2) == 2 and int('4') + float(0.5) == 4.5", True),
        ("str(level) == '3' and ' a '.strip() == 'a' and topic.count('e') == 3", True),
        ("level", True),
        ("", False),
    ],
)
def test_what_a_filter_says(text: str, passes: bool) -> None:
    if not text:
        with pytest.raises(ExpressionError, match="is no expression"):
            Expression(text)
        return
    assert Expression(text)(ROW) is passes


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('touch x')",
        "().__class__.__bases__",
        "topic.format(1)",
        "topic.__class__",
        "[x for x in tags]",
        "(lambda: 1)()",
        "open('/etc/passwd')",
        "exec('1')",
        "f'{level}'",
        "level := 3",
        "2 ** 9999999",
        "1 << 99",
        "level if rate else 0",
        "tags[0:1]",
        "b'x' == topic",
        "len(obj=tags)",
        "level; rate",
        "x" * 3000,
        "(" * 900 + "1" + ")" * 900,
        "1 if",
        "a.b.c.lower.upper()",
    ],
)
def test_nothing_else_is_read_or_run(text: str) -> None:
    with pytest.raises(ExpressionError):
        Expression(text)(ROW)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("level > 'x'", r"\"level > 'x'\": '>' not supported .* \(level=3\)"),
        ("note > 1", r"not supported between .* \(note=None\)"),
        ("topic * 9", "computes with str and int, not with numbers"),
        ("level / 0 > 1", "division by zero"),
        ("int(topic) > 1", "invalid literal"),
        ("level.lower() == 'x'", "lower is of texts, not of int"),
        ("tags[9] == 1", "list index out of range"),
        ("topic.year == 1", "topic is str, which has no 'year'"),
    ],
)
def test_values_that_do_not_fit_are_named(text: str, message: str) -> None:
    with pytest.raises(ExpressionError, match=message):
        Expression(text)(ROW)
