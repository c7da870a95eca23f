"""Sweeps: the settings of several runs from one command line, `trainer.seed=0,1,2` being three.

A comma outside brackets and quotes separates values; `\\,` is a comma of the value itself. So

    control.target_entropy=0.7,0.85             two numbers
    trainer.trackers=[tensorboard,wandb]        one value: a list
    trainer.trackers=[tensorboard],[wandb]      two lists
    task.options.prompt_template=first\\, then   one text

Several such settings give every combination, the last one varying fastest.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import product
from pathlib import Path

from megatron_entropic.config import Config
from megatron_entropic.config.loading import ConfigError, load_config, override, to_dict
from megatron_entropic.config.schema import LONGEST_NAME

MOST_RUNS = 1000
"""Runs of a sweep; more is a slip of the keyboard."""
LONGEST_FOLDER = 120
"""Characters of the folder's name."""
_CLOSING = {"[": "]", "{": "}"}
_UNSAFE = re.compile(r"[^A-Za-z0-9._+-]+")


@dataclass(frozen=True)
class SweepRun:
    """One run: `chosen` is what tells it from the others, by setting; `overrides` are all of its, with run.name and run.dir."""

    chosen: dict[str, str]
    overrides: tuple[str, ...]
    cfg: Config

    @property
    def folder(self) -> str:
        """The name of its folder in the sweep's."""
        return self.cfg.run_dir.name


def sweep_runs(source: str, overrides: Sequence[str]) -> tuple[Path, list[SweepRun]]:
    """(the folder of the sweep, its runs in their order): runs/NAME and runs/NAME/<settings>, NAME being the recipe's run.name.

    Raises ConfigError when nothing is swept, a value is missing or there twice, or settings of a run cannot be used: it is named.
    """
    axes = [(name, split_values(name, text)) for name, _, text in (each.partition("=") for each in overrides)]
    _check_axes(axes)
    swept = [name for name, values in axes if len(values) > 1]
    runs: list[SweepRun] = []
    for values in product(*(values for _, values in axes)):
        given = [f"{name}={value}" if "=" in whole else whole for (name, _), value, whole in zip(axes, values, overrides, strict=True)]
        chosen = {name: value for (name, _), value in zip(axes, values, strict=True) if name in swept}
        runs.append(_run(source, given, chosen))
    folder = runs[0].cfg.run_dir.parent
    _check_apart(runs)
    return folder, runs


def split_values(name: str, text: str) -> list[str]:
    """The values that `text` gives the setting `name`. Raises ConfigError for an empty one, one given twice, or an open bracket."""
    values = list(_parts(name, text))
    if len(values) == 1:
        return values
    if "" in values:
        raise ConfigError(f"{name}={text}: a value between two commas is missing; a comma of a value itself is \\,")
    if twice := next((value for value in values if values.count(value) > 1), None):
        raise ConfigError(f"{name}={text}: {twice} is there twice")
    return values


def _parts(name: str, text: str) -> Iterator[str]:
    """Pieces between commas that stand in no bracket and no quotes; quotes open where a value begins, as in YAML."""
    piece, closing, quote, before = "", "", "", ","
    characters = iter(text)
    for character in characters:
        if character == "\\" and not quote:
            following = next(characters, "")
            piece, before = piece + ("," if following == "," else character + following), character
            continue
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'" and before in ",[{:":
            quote = character
        elif character in _CLOSING:
            closing = _CLOSING[character] + closing
        elif closing and character == closing[0]:
            closing = closing[1:]
        elif character == "," and not closing:
            yield piece.strip()
            piece, before = "", ","
            continue
        piece += character
        before = before if character.isspace() else character
    if closing or quote:
        raise ConfigError(f"{name}={text}: {quote or closing[0]} is missing at its end")
    yield piece.strip() if piece.strip() != text.strip() else piece


def _check_axes(axes: Sequence[tuple[str, Sequence[str]]]) -> None:
    names = [name for name, _ in axes]
    swept = [name for name, values in axes if len(values) > 1]
    if not swept:
        raise ConfigError("--sweep: no setting has several values; write them with commas, such as trainer.seed=0,1,2")
    for name in swept:
        if name in ("run.name", "run.dir"):
            raise ConfigError(f"{name} has several values: a sweep names the folder of each run itself, runs/NAME/<settings>")
        if names.count(name) > 1:
            raise ConfigError(f"{name} is given twice, and a sweep needs all of its values in one")
    count = 1
    for _, values in axes:
        count *= len(values)
    if count > MOST_RUNS:
        raise ConfigError(f"--sweep: these are {count} runs, and more than {MOST_RUNS} are refused")


def _run(source: str, given: Sequence[str], chosen: dict[str, str]) -> SweepRun:
    """The run of one combination. Raises ConfigError naming it."""
    try:
        cfg = load_config(source, given)
        folder = folder_name(chosen)
        name = shortened(f"{cfg.run.name}-{folder}", LONGEST_NAME)
        own = (override("run.name", name), override("run.dir", cfg.run_dir / folder))
        cfg = replace(cfg, run=replace(cfg.run, name=name, dir=cfg.run_dir / folder))
    except ConfigError as error:
        raise ConfigError(f"the run with {' '.join(f'{name}={value}' for name, value in chosen.items())}: {error}") from None
    return SweepRun(chosen, (*(word for word in given if not word.startswith(("run.name=", "run.dir="))), *own), cfg)


def folder_name(chosen: dict[str, str]) -> str:
    """`target_entropy=0.7,seed=1`: names without their section, unless two are alike.

    What is no letter, digit or one of . _ + - becomes a dash, and a value that lost something gets the beginning of its hash. A name
    depends on its own settings alone, so that a sweep to which values are added finds the runs it has.
    """
    last = [name.rsplit(".", 1)[1] for name in chosen]
    words = []
    for name, short, value in zip(chosen, last, chosen.values(), strict=True):
        safe = _UNSAFE.sub("-", value)
        words.append(f"{short if last.count(short) == 1 else name}={safe if safe == value else _marked(safe[:40], value)}")
    return shortened(",".join(words), LONGEST_FOLDER)


def shortened(text: str, longest: int) -> str:
    """`text`, or its beginning and a hash of all of it."""
    return text if len(text) <= longest else _marked(text[: longest - 9], text)


def _marked(safe: str, whole: str) -> str:
    return f"{safe.strip('-')}-{sha256(whole.encode()).hexdigest()[:8]}"


def _check_apart(runs: Sequence[SweepRun]) -> None:
    """Raises ConfigError for two runs that are the same, such as those of 0.7 and 0.70."""
    seen: dict[str, SweepRun] = {}
    for run in runs:
        settings = {section: fields for section, fields in to_dict(run.cfg).items() if section != "run"}
        other = seen.setdefault(repr(settings), run)
        if other is not run:
            raise ConfigError(f"--sweep: {other.folder} and {run.folder} are the same run: their settings mean the same")
