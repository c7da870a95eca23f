"""The reference of all settings, made from their definitions."""

import dataclasses
import html
import textwrap
from collections.abc import Iterator
from typing import get_type_hints

from megatron_entropic.config import Config
from megatron_entropic.config.control import KINDS, PRESETS, READ_BY_ALL, kind_settings
from megatron_entropic.config.loading import ConfigError, to_dict

PRESET_MEANING = "Several settings at once, as the methods' authors released them; settings given after the preset win."

KIND_MEANING = (
    f"What `control.kind` reads. Every kind reads {', '.join(f'`{name}`' for name in READ_BY_ALL)}; a setting that the kind does "
    "not read is refused when it is given on the command line."
)

READING = (
    "`section.field=VALUE` on the command line: names, words and paths are taken as typed, with `~` for the home folder (put what has "
    "spaces or `#` in quotes for the shell); where the default is `None`, `null` or nothing after the `=` means that. Other values are "
    "YAML: `rollout.server_args='[--a, --b]'`. One option of a task: `task.options.NAME=VALUE`; naming another task drops the recipe's."
)


def settings_reference(section: str | None = None) -> str:
    """One line per setting for a terminal: name, default, meaning; of one section or of all.

    Raises ConfigError for an unknown section.
    """
    sections = _sections()
    if section is not None and section not in sections:
        raise ConfigError(f"no section {section!r}; sections: {', '.join(sections)}")
    lines: list[str] = []
    for name, (meaning, rows) in sections.items():
        if section in (None, name):
            lines += ["", f"{name}: {meaning}"]
            lines += [f"  {f'{setting}={default}':<46} {description}" for setting, default, description in rows]
            if name == "control":
                lines += ["", "  what reads which:", *(f"  {line}" for line in _kinds())]
                lines += ["", f"  {PRESET_MEANING}"]
                lines += [f"  {f'control.preset={preset}':<46} {changed}" for preset, changed in _presets()]
    return "\n".join(lines).lstrip("\n")


def settings_markdown() -> str:
    """The page docs/settings.md: a table per section."""
    lines = [
        "# Settings",
        "",
        "Made from `megatron_entropic/config/` by `make docs`. Recipes change some of these defaults.",
        "",
        READING,
    ]
    for name, (meaning, rows) in _sections().items():
        lines += ["", f"## {name}", "", meaning, "", "| setting | default | meaning |", "|---|---|---|"]
        lines += [f"| `{setting}` | `{default}` | {_cell(description)} |" for setting, default, description in rows]
        if name == "control":
            lines += ["", KIND_MEANING, "", "| kind | what it is | reads |", "|---|---|---|"]
            lines += [f"| `{kind}` | {_cell(meaning)} | {read} |" for kind, meaning, read in _kind_rows("`{}`")]
            lines += ["", PRESET_MEANING, "", "| preset | sets |", "|---|---|"]
            lines += [f"| `control.preset={preset}` | {_cell(changed)} |" for preset, changed in _presets()]
    return "\n".join(lines)


def _kinds() -> Iterator[str]:
    """For a terminal: each kind of control, what it is, and the settings that belong to it."""
    yield f"{'every kind':<15} {', '.join(READ_BY_ALL)}"
    for kind, meaning, read in _kind_rows("{}"):
        yield f"{kind:<15} {meaning}"
        yield from textwrap.wrap(read or "nothing further", 110, initial_indent=" " * 16, subsequent_indent=" " * 16)


def _kind_rows(name: str) -> Iterator[tuple[str, str, str]]:
    """(kind, meaning, settings it reads beside those of every kind), each setting formatted by `name`."""
    for kind in KINDS:
        record = kind_settings(kind)
        yield kind, record.meaning, ", ".join(name.format(setting) for setting in dict.fromkeys(record.reads))


def _presets() -> list[tuple[str, str]]:
    """Name and settings of each `control.preset`."""
    return [(name, ", ".join(f"{field}={value}" for field, value in settings.items())) for name, settings in PRESETS.items()]


def _cell(text: str) -> str:
    """Text that a Markdown table shows as it is."""
    return html.escape(text, quote=False).replace("|", "\\|")


def _sections() -> dict[str, tuple[str, list[tuple[str, object, str]]]]:
    """By section: its meaning, and (dotted name, default, meaning) of each setting."""
    defaults = to_dict(Config())

    def rows(section: str, section_type: type) -> Iterator[tuple[str, object, str]]:
        for field in dataclasses.fields(section_type):
            # A pydantic dataclass keeps its FieldInfo, description and all, as the dataclass field's default.
            yield f"{section}.{field.name}", defaults[section][field.name], str(getattr(field.default, "description", ""))

    return {name: (kind.__doc__ or "", list(rows(name, kind))) for name, kind in get_type_hints(Config).items()}
