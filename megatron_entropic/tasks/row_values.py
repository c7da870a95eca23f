"""The values of one row: which fields hold them, and how prompts and answers are written in data sets."""

import decimal
from collections.abc import Mapping, Sequence
from typing import Any

_MOST_DIGITS = 400
"""Of a number as an answer, written out."""


class BadRowError(ValueError):
    """A row cannot be used; the message names the field."""


def recognised(fields: Mapping[str, Any], known: Sequence[str], what: str) -> str:
    """The first of the `known` fields that a row has. Raises BadRowError listing those it has."""
    for name in known:
        if name in fields or find(fields, name) is not None:
            return name
    raise BadRowError(
        f"no field for the {what}; found: {', '.join(fields) or 'none'}; known: {', '.join(known)}; "
        f"name yours: task.options.{what}_field=..."
    )


def value_at(fields: Mapping[str, Any], name: str) -> Any:
    """The value of a field, or of a field of a field (`a.b`). Raises BadRowError when it is missing or null."""
    value = find(fields, name)
    if value is None:
        raise BadRowError(f"field {name} is missing or null; found: {', '.join(fields) or 'none'}")
    return value


def prompt_text(value: Any, field: str) -> str:
    """A prompt: text, or a chat of one message from the user. Raises BadRowError for anything else, and for what no tokenizer reads."""
    if isinstance(value, list):
        roles = [message.get("role") if isinstance(message, dict) else None for message in value]
        if roles != ["user"]:
            raise BadRowError(f"field {field} is a chat of {roles}; only one message of the user can be asked")
        value = value[0].get("content")
    return sound_text(value, field)


def answer_text(value: Any, field: str) -> str:
    """A known answer as text, stripped: text, a number as it is written, or a list of one of these. Raises BadRowError."""
    if isinstance(value, list):
        if len(value) != 1:
            raise BadRowError(f"field {field} is a list of {len(value)}; one answer is needed")
        value = value[0]
    if isinstance(value, decimal.Decimal):
        if not value.is_finite() or abs(value.adjusted()) > _MOST_DIGITS:
            raise BadRowError(f"field {field} is {value}, which is no number that can be written out")
        return format(value, "f")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return sound_text(value, field).strip()


def find(fields: Mapping[str, Any], name: str) -> Any:
    """The value of a field, or of a field of a field (`a.b`); None when it is missing."""
    if name in fields:
        return fields[name]
    value: Any = fields
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def sound_text(value: Any, field: str) -> str:
    """`value` of a field when it is text that can be shown to a model. Raises BadRowError."""
    if not isinstance(value, str):
        raise BadRowError(f"field {field} must be text, not {type(value).__name__}")
    if not value.strip():
        raise BadRowError(f"field {field} is empty")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise BadRowError(f"field {field} holds half of a character (a lone surrogate, such as \\ud800)")
    if "\0" in value:
        raise BadRowError(f"field {field} holds a NUL character (\\u0000)")
    return value
