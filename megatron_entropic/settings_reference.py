"""The reference of all settings, made from their definitions."""

import dataclasses
from typing import Any, get_type_hints

from megatron_entropic.config import Config
from megatron_entropic.config_loading import ConfigError, to_dict


def settings_reference(section: str | None = None) -> str:
    """One line per setting: name, default, meaning; of one section or of all. Raises ConfigError for an unknown section."""
    sections = get_type_hints(Config)
    if section is not None and section not in sections:
        raise ConfigError(f"no section {section!r}; sections: {', '.join(sections)}")
    defaults = to_dict(Config())
    lines: list[str] = []
    for name, section_type in sections.items():
        if section in (None, name):
            lines += ["", f"{name}: {section_type.__doc__}"]
            lines += [_line(name, field, defaults[name][field.name]) for field in dataclasses.fields(section_type)]
    return "\n".join(lines).lstrip("\n")


def _line(section: str, field: dataclasses.Field[Any], default: object) -> str:
    return f"  {f'{section}.{field.name}={default}':<46} {_description(field.default)}"


def _description(default: object) -> str:
    """A pydantic dataclass keeps its FieldInfo, description and all, as the dataclass field's default."""
    return str(getattr(default, "description", ""))
