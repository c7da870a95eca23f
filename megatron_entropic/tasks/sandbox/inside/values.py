"""Values that go out of the sandbox: JSON that tells lists from tuples and sets. Nothing is run when it is read."""

import json
from typing import Any

_DEEPEST = 50


class NotPlainError(ValueError):
    """A value is not made of numbers, texts, bytes, None, lists, tuples, sets and dictionaries."""


def to_text(value: object) -> str:
    """`value` as JSON. Raises NotPlainError. Values of derived types go as their base type, without asking them."""
    try:
        return json.dumps(_tagged(value, 0))
    except ValueError as error:
        raise NotPlainError(str(error)) from None


def _tagged(value: object, depth: int) -> object:
    if depth > _DEEPEST:
        raise NotPlainError("nested too deep")
    if value is None or value is True or value is False:
        return value
    if isinstance(value, int):
        return int.__index__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, bytes | bytearray):
        return {"bytes": bytes(value).hex()}
    if isinstance(value, list):
        return [_tagged(each, depth + 1) for each in list.__iter__(value)]
    if isinstance(value, tuple):
        return {"tuple": [_tagged(each, depth + 1) for each in tuple.__iter__(value)]}
    if isinstance(value, set | frozenset):
        return {"set": [_tagged(each, depth + 1) for each in list(value)]}
    if isinstance(value, dict):
        return {"dict": [[_tagged(key, depth + 1), _tagged(each, depth + 1)] for key, each in dict.items(value)]}
    raise NotPlainError(f"a {type(value).__name__}")


def from_text(text: str) -> Any:
    """The value that `to_text` wrote. Raises ValueError for anything else."""
    try:
        return _untagged(json.loads(text))
    except (RecursionError, TypeError, AttributeError) as error:
        raise ValueError(f"no value of the sandbox: {error}") from None


def _untagged(found: Any) -> Any:
    if isinstance(found, list):
        return [_untagged(each) for each in found]
    if not isinstance(found, dict):
        return found
    if len(found) != 1:
        raise ValueError("no value of the sandbox")
    ((kind, inner),) = found.items()
    if kind == "bytes":
        return bytes.fromhex(inner)
    if kind == "tuple":
        return tuple(map(_untagged, inner))
    if kind == "set":
        return set(map(_untagged, inner))
    if kind == "dict":
        return {_untagged(key): _untagged(value) for key, value in inner}
    raise ValueError("no value of the sandbox")
