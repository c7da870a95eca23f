"""JSON that a schema allows (the package jsonschema, imported where it is used). References lead nowhere outside of the schema."""

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from megatron_entropic.tasks.row_values import BadRowError
from megatron_entropic.tasks.verifiers.extraction import after_thinking, extracted, fenced, way_of
from megatron_entropic.tasks.verifiers.options import Options


class JsonSchema:
    """Scores 1 when the last ``` block of the response, or what is extracted, is JSON that fits. Without a schema the answer is one."""

    reads: tuple[str, ...] = ()

    def __init__(self, way: str, schema: str) -> None:
        self.way, self.schema = way, schema
        self._made = lru_cache(maxsize=256)(_validator)

    def start(self) -> None:
        """Loads the package."""
        _validator("{}")

    def known_answer(self, text: str, row: Mapping[str, Any]) -> str:
        """The text, which must be a schema unless the options have one."""
        if not self.schema:
            try:
                self._made(text)
            except ValueError as error:
                raise BadRowError(f"the answer is no JSON schema: {error}") from None
        return text

    def score(self, answer: str, row: Mapping[str, Any], response: str) -> float:
        """1.0 or 0.0."""
        block = fenced(after_thinking(response), ("json", "")) if self.way == "auto" else None
        given = extracted(response, self.way) if block is None else block
        if given is None:
            return 0.0
        try:
            value = json.loads(given, parse_constant=_refuse, object_pairs_hook=_once)
        except (ValueError, RecursionError):
            return 0.0
        return float(self._made(self.schema or answer).is_valid(value))


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a name is there twice")
    return value


def _validator(text: str) -> Any:
    """The schema in a text, ready. Raises ValueError."""
    import jsonschema
    import referencing

    schema = json.loads(text)
    if not isinstance(schema, dict | bool):
        raise ValueError("a schema is an object")
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise ValueError(error.message[:200]) from None
    return kind(schema, registry=referencing.Registry())


def make_json_schema(options: Mapping[str, Any]) -> JsonSchema:
    """Options: schema (an object; else the row's answer), extract (auto)."""
    read = Options("json_schema", options, "extract", "schema")
    schema = options.get("schema")
    if schema is not None and not isinstance(schema, Mapping):
        raise read.wrong("schema", "must be a JSON schema: an object")
    text = "" if schema is None else json.dumps(schema)
    if text:
        try:
            _validator(text)
        except ValueError as error:
            raise read.wrong("schema", f"is no JSON schema: {error}") from None
    return JsonSchema(way_of(read), text)
