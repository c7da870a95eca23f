"""From recipe or file plus `a.b=value` overrides to a validated Config, and back to YAML.

Every problem is reported at once, by dotted field name, with the nearest existing name for a typo.
"""

import difflib
import importlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from megatron_entropic.config import Config
from megatron_entropic.config.control import KINDS, PRESETS, ControlConfig, settings_read_by
from megatron_entropic.config.values import option_of, record_of, sections_of, text_of, value_of
from megatron_entropic.errors import ReportedError
from megatron_entropic.system.atomic_files import write_atomically
from megatron_entropic.system.named_functions import run_file
from megatron_entropic.system.shipped_files import find_model

_ADAPTER = TypeAdapter(Config)
_FIELDS: dict[str, dict[str, Any]] = {section: get_type_hints(kind) for section, kind in get_type_hints(Config).items()}
_DEFAULT_CONTROL = TypeAdapter(ControlConfig).dump_python(ControlConfig(), mode="json")
_OPTIONS = ("task.options.", "control.options.")


class ConfigError(ReportedError, ValueError):
    """The settings cannot be used; the message names every offending field and what would be right."""


def field_names() -> list[str]:
    """All dotted field names of a Config, such as `trainer.steps`."""
    return [f"{section}.{field}" for section, kinds in _FIELDS.items() for field in kinds]


def load_config(source: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """The Config that `source` describes, with the overrides applied.

    Args:
        source: a recipe's name (a module in recipes/; `.` and `-` mean `_`), a recipe file (*.py), either with `:variant`, or a
            saved config (*.yaml); None: the defaults of all settings.
        overrides: `section.field=value` each, the value as values.py reads it (`run.name=2024-11-25`, `trainer.steps=3`,
            `rollout.server_args=[--foo]`). `task.options.NAME=value` sets one option and keeps the others; with another
            `task.name` than the source's, its options go. Likewise `control.options.NAME=value` and `control.kind`.
            `control.preset=NAME` sets what control.PRESETS[NAME] holds; overrides after it win.
    Raises:
        ConfigError: unknown source, unknown field, value out of bounds, fields that contradict each other, or an override of a
            setting of entropy control that `control.kind` does not read.
    """
    is_yaml = str(source).endswith((".yaml", ".yml"))
    base = Config() if source is None else _read_yaml(Path(source)) if is_yaml else _recipe_config(str(source))
    settings = to_dict(base)
    for section, field in (("task", "name"), ("control", "kind")):
        named = f"{section}.{field}="
        if any(override.startswith(named) and override != f"{named}{settings[section][field]}" for override in overrides):
            settings[section]["options"] = {}
    for override in overrides:
        _apply_override(settings, override)
    if isinstance(path := settings["model"]["hf_path"], str):
        settings["model"]["hf_path"] = str(find_model(Path(path)))
    loaded = from_dict(settings, origin="settings" if source is None else str(source))
    given = [override.partition("=")[0] for override in overrides]
    _refuse_unread(loaded.control, [name.split(".")[1] for name in given if name.startswith("control.") and name != "control.preset"])
    return loaded


def from_dict(settings: dict[str, Any], *, origin: str) -> Config:
    """Validates nested settings; `origin` names where they came from in the error."""
    try:
        return _ADAPTER.validate_python(settings)
    except ValidationError as error:
        raise ConfigError(f"{origin}: " + "; ".join(_explanations(error))) from None


def to_dict(config: Config) -> dict[str, Any]:
    """Nested plain settings (JSON types only)."""
    settings: dict[str, Any] = _ADAPTER.dump_python(config, mode="json")
    return settings


def override(name: str, value: Any) -> str:
    """The override that sets the field `name` to `value` (a Config's, or as in `to_dict`), whatever characters are in it."""
    section, field = name.split(".")
    return f"{name}={text_of(str(value) if isinstance(value, Path) else value, _FIELDS[section][field])}"


def save_config(config: Config, path: Path) -> None:
    """Writes `path` as YAML, atomically."""
    write_atomically(path, yaml.safe_dump(to_dict(config), sort_keys=False).encode())


def recipe_names() -> list[str]:
    """Names that `load_config` finds in the recipes package."""
    folder = Path(importlib.import_module("recipes").__file__ or "").parent
    return sorted(path.stem for path in folder.glob("*.py") if f"def {path.stem}()" in path.read_text(encoding="utf-8"))


def _recipe_config(source: str) -> Config:
    """A recipe is a module whose function of the same name returns a Config; its VARIANTS name further such functions."""
    if not (source.endswith(".py") and Path(source).is_file()):  # a file's folder may have a colon in its name
        source, _, variant = source.rpartition(":") if ".py:" in source else source.partition(":")
    else:
        variant = ""
    if source.endswith(".py"):
        if not (path := Path(source)).is_file():
            raise ConfigError(f"{source}: no such recipe file")
        module, name = run_file(path), path.stem
    else:
        name = source.replace(".", "_").replace("-", "_")
        if name not in (names := recipe_names()):
            raise ConfigError(f"{source!r} is neither a file nor a recipe{_nearest(name, names)}; recipes: {', '.join(names)}")
        module = importlib.import_module(f"recipes.{name}")
    known: Sequence[str] = getattr(module, "VARIANTS", ())
    if variant and variant not in known:
        raise ConfigError(f"{source}:{variant}: no such variant{_nearest(variant, known)}; variants: {', '.join(known) or 'none'}")
    function = variant or name
    factory = getattr(module, function, None)
    if not callable(factory):
        raise ConfigError(f"{source}: a recipe file needs a function {function}() that returns a Config")
    config = factory()
    if not isinstance(config, Config):
        raise ConfigError(f"{source}: {function}() returned {type(config).__name__}, not a Config")
    return config


def _read_yaml(path: Path) -> Config:
    try:
        settings = sections_of(path.read_text(encoding="utf-8-sig"), _FIELDS)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8: {error}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(settings, dict):
        raise ConfigError(f"{path}: holds no settings; expected sections such as trainer: and control:")
    config = from_dict(settings, origin=str(path))
    given = settings.get("control") or {}
    if len(given) < len(_FIELDS["control"]) / 2:  # a saved config.yaml holds all of them, read or not
        unusual = [name for name, value in to_dict(config)["control"].items() if name in given and value != _DEFAULT_CONTROL[name]]
        _refuse_unread(config.control, unusual, origin=f"{path}: ")
    return config


def _apply_override(settings: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals:
        raise ConfigError(f"override {override!r} has no '='; write section.field=value{_quoting(override)}")
    if name == "control.preset":
        if text not in PRESETS:
            raise ConfigError(f"control.preset={text!r} is not one of {', '.join(PRESETS)}")
        settings["control"].update(PRESETS[text])
        return
    try:
        if name.startswith(_OPTIONS):
            section, _, option = name.split(".", 2)
            settings[section]["options"][option] = option_of(option, text)
            return
        if name not in (names := field_names()):
            raise ConfigError(f"unknown setting {name!r}{_nearest(name, names)}")
        section, field = name.split(".")
        value = value_of(text, _FIELDS[section][field])
    except ConfigError:
        raise
    except ValueError as problem:
        raise ConfigError(f"override {override!r}: {problem}{_quoting(text)}") from None
    if get_origin(_FIELDS[section][field]) is dict and not isinstance(value, dict):
        raise ConfigError(f"override {override!r}: a mapping is needed, in quotes: '{name}={{NAME: VALUE}}'; or set {name}.NAME=VALUE")
    settings[section][field] = value


def _refuse_unread(control: ControlConfig, given: Sequence[str], origin: str = "") -> None:
    """Raises ConfigError for settings of entropy control that `control.kind` does not read, naming the kinds that do."""
    if not given or set(given) == {"kind"}:
        return
    try:
        read = settings_read_by(control.kind)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    for name in given:
        if name not in read:
            kinds = [kind for kind in KINDS if name in settings_read_by(kind)]
            readers = f"{', '.join(kinds)} do" if len(kinds) > 1 else f"{kinds[0]} does" if kinds else "a kind of your own does"
            raise ConfigError(
                f"{origin}control.{name} is given, but control.kind={control.kind} does not read it ({readers}); leave it out or "
                "choose another control.kind; `megatron-entropic settings control` shows what belongs to which"
            )


def _quoting(text: str) -> str:
    """Hint for when a shell seems to have split a value at its spaces."""
    if text.count("{") == text.count("}") and text.count("[") == text.count("]"):
        return ""
    return (
        "; the shell splits words at spaces: put the whole override in quotes, such as 'task.options={dataset: chain_sum}', or set one "
        "option by task.options.dataset=chain_sum"
    )


def _explanations(error: ValidationError) -> Iterator[str]:
    """A sentence for each setting; one that takes several types has a problem for each, with the type after its name."""
    problems = error.errors(include_url=False)
    for name, same in itertools.groupby(problems, lambda problem: ".".join(_name_parts(problem["loc"]))):
        first, *others = [_explain(name, problem) for problem in same]
        yield " or ".join([first, *(other.rpartition("input should be ")[2] for other in others)])


def _name_parts(loc: Sequence[str | int]) -> Iterator[str]:
    """Section and field; in a list of records the record's number and its field. The others are types."""
    named = len(("section", "field"))
    return (str(part) for at, part in enumerate(loc) if at < named or isinstance(part, int) or isinstance(loc[at - 1], int))


def _explain(name: str, problem: Any) -> str:
    if problem["type"] == "unexpected_keyword_argument":
        return f"unknown setting {name!r}{_nearest(name, _names_beside(problem['loc']))}"
    message = problem["msg"].removeprefix("Value error, ")
    if "." not in name:
        return str(message)
    return f"{name}={problem['input']!r}: {message[0].lower()}{message[1:]}"


def _names_beside(loc: Sequence[str | int]) -> list[str]:
    """Names that the setting at `loc` may have been meant to be: all settings, or those of a record in a list of records."""
    if len(loc) != 4 or (record := record_of(_FIELDS.get(str(loc[0]), {}).get(str(loc[1])))) is None:
        return field_names()
    return [".".join(map(str, (*loc[:3], field))) for field in get_type_hints(record)]


def _nearest(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if beginning := [candidate for candidate in names if candidate.startswith(f"{name}_")]:
        close = beginning[:1]  # control.target is control.target_entropy, though control.target_unit is nearer by its letters
    elif not close and "." in name:
        last = name.rsplit(".", 1)[1]
        close = [candidate for candidate in names if candidate.rsplit(".", 1)[1] == last][:1]
    return f"; did you mean {close[0]!r}?" if close else ""
