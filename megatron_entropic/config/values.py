"""Values of settings as text: what a user types after `=`, or a YAML file holds, read by the type of the field it is for.

A text or a path is taken as it stands: `run.name=2024-11-25` is a name, `run.dir=exp #2` a folder. Where nothing may be there too
(`run.dir`), `null` and an empty value mean nothing; a folder of that name is ./null. A list of records (`data.train`)
may be the path of one. Everything else is YAML of the core schema (1.2): 1e-6 is a number, dates are texts, yes and no are words.
"""

import dataclasses
import json
import re
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from yaml.constructor import ConstructorError

NOTHING = ("", "null")
TEXT_OPTIONS = frozenset({"path", "prompt_template", "prompt_field", "answer_field", "split", "dataset"})
"""Options of the tasks (task.options) that are texts."""

_MAP = "tag:yaml.org,2002:map"
_NOT_IN_YAML = re.compile("[^\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
"""Characters that a quoted YAML string must escape."""
_LISTS = re.compile(r"\s*(?:[\[{'\"]|-\s)")
"""How the text of a list of records begins; any other is one record, named by its text."""


class _CoreLoader(yaml.SafeLoader):  # type: ignore[misc]  # yaml comes without types
    """YAML's core schema: JSON's scalars and nothing else. A key that is there twice is an error."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - yaml's own class attribute, filled below

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := next((key for key in keys if keys.count(key) > 1), None):
            raise ConstructorError(None, None, f"{twice} is there twice", node.start_mark)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


for _tag, _pattern, _first in (
    ("null", r"null|Null|NULL|~|", ["n", "N", "~", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    _CoreLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)


def value_of(text: str, kind: Any) -> Any:
    """The value that `text` means for a field of type `kind`. Raises ValueError when it is no YAML where YAML is needed."""
    kind, optional = _without_none(kind)
    if _is_text(kind):
        if optional and text in NOTHING:
            return None
        if kind is Path and not text:
            raise ValueError("a path is needed")
        return text
    if record_of(kind) is not None and not _LISTS.match(text):
        return [text] if text else []
    try:
        loader = _CoreLoader(text)
        node = loader.get_single_node()
        return None if node is None else _constructed(loader, node, kind)
    except (yaml.YAMLError, ValueError) as error:
        problem = getattr(error, "problem", None)
        raise ValueError("the value is not valid YAML" + (f": {problem}" if problem else "")) from error


def option_of(name: str, text: str) -> Any:
    """The value that `text` means for the option `name` of a task. Raises ValueError."""
    return value_of(text, str if name in TEXT_OPTIONS else Any)


def text_of(value: Any, kind: Any) -> str:
    """The text that `value_of` reads as `value`, in one line; `value` in JSON's types."""
    kind, optional = _without_none(kind)
    if _is_text(kind) and value is not None:
        return f"./{value}" if optional and kind is Path and value in NOTHING else str(value)
    text = json.dumps(value, ensure_ascii=False)
    return _NOT_IN_YAML.sub(lambda found: "".join(f"\\U{ord(character):08x}" for character in found[0]), text)


def sections_of(text: str, kinds: Mapping[str, Mapping[str, Any]]) -> Any:
    """A YAML file of sections: each field's value by its type in `kinds`, a mapping of sections to fields to types.

    What the types do not know is read too, for others to refuse. Raises yaml.YAMLError.
    """
    loader = _CoreLoader(text)
    node = loader.get_single_node()
    if not isinstance(node, yaml.MappingNode):
        return None if node is None else loader.construct_document(node)
    sections = loader.construct_document(node)
    for section, fields in node.value:
        if isinstance(fields, yaml.MappingNode):
            known = kinds.get(section.value, {})
            sections[section.value] |= {
                key.value: _constructed(loader, value, known[key.value]) for key, value in fields.value if key.value in known
            }
    return sections


def _constructed(loader: _CoreLoader, node: Any, kind: Any) -> Any:
    """The value of a YAML node: the text that stands there where `kind` is one."""
    kind, optional = _without_none(kind)
    if isinstance(node, yaml.ScalarNode) and _is_text(kind):
        return None if optional and node.style is None and node.value in (*NOTHING, "~") else node.value
    if isinstance(node, yaml.SequenceNode) and get_origin(kind) is tuple and get_args(kind)[0] is str:
        return [_constructed(loader, item, str) for item in node.value]
    if (record := record_of(kind)) is not None and isinstance(node, yaml.SequenceNode | yaml.MappingNode):
        return [_record(loader, item, record) for item in (node.value if isinstance(node, yaml.SequenceNode) else [node])]
    value = loader.construct_document(node)
    if isinstance(value, dict) and get_origin(kind) is dict:
        value |= {key.value: item.value for key, item in node.value if key.value in TEXT_OPTIONS and isinstance(item, yaml.ScalarNode)}
    return value


def record_of(kind: Any) -> Any:
    """The type of the records that a setting lists, such as data.train's DataSource; None for other settings."""
    first = get_args(kind)[0] if get_origin(kind) is tuple else None
    return first if dataclasses.is_dataclass(first) else None


def _record(loader: _CoreLoader, node: Any, kind: Any) -> Any:
    """The value of a YAML node that stands for a record of settings: its fields by their types, a text alone as it stands."""
    if not isinstance(node, yaml.MappingNode):
        return _constructed(loader, node, str)
    kinds = get_type_hints(kind)
    fields: dict[Any, Any] = loader.construct_document(node)
    return fields | {key.value: _constructed(loader, value, kinds[key.value]) for key, value in node.value if key.value in kinds}


def _without_none(kind: Any) -> tuple[Any, bool]:
    """The type without `| None`, and whether it had it."""
    if get_origin(kind) in (Union, types.UnionType):
        others = [each for each in get_args(kind) if each is not type(None)]
        if len(others) == 1:
            return others[0], True
    return kind, False


def _is_text(kind: Any) -> bool:
    return kind in (str, Path) or (get_origin(kind) is Literal and all(isinstance(each, str) for each in get_args(kind)))
