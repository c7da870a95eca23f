"""`megatron-entropic evaluate --sets` and `--compare`: scores on sets of problems, and whether two models differ."""

import argparse
import difflib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_entropic.config import Config
from megatron_entropic.config.loading import ConfigError, from_dict
from megatron_entropic.config.validation import PRESETS, ValidationSet
from megatron_entropic.system.atomic_files import write_atomically

if TYPE_CHECKING:
    from megatron_entropic.evaluation.results import Results

SettingsOf = Callable[[Path], Config]
"""The settings with which a run or model is evaluated."""


def add_set_options(evaluate: argparse.ArgumentParser) -> None:
    """Adds the options of both to the command."""
    evaluate.add_argument(
        "--sets",
        action="append",
        metavar="NAME,NAME=FILE,...",
        help=f"score on these sets: presets ({', '.join(PRESETS)}), sets of the run's validation.sets, or files",
    )
    evaluate.add_argument(
        "--compare",
        nargs=2,
        type=Path,
        metavar=("A", "B"),
        help="two result files, runs or models: a paired test on the problems that both answered; with --sets they are evaluated first",
    )


def run_sets(options: argparse.Namespace, model: Path, settings_of: SettingsOf) -> int:
    """Scores one model on the sets, prints the table and writes it."""
    from megatron_entropic.evaluation.results import RESULTS

    results = _evaluated(options, model, settings_of)
    print(results)
    default = model / RESULTS if (model / "config.yaml").is_file() else Path("runs/evaluate") / f"{model.resolve().name}.json"
    out = options.out.expanduser() if options.out else default
    results.save(out)
    print(f"written to {out}")
    return 0


def run_compare(options: argparse.Namespace, settings_of: SettingsOf) -> int:
    """Compares two models, evaluated now where sets are named, else by what was written about them."""
    from megatron_entropic.evaluation.compare import compare, comparison_json
    from megatron_entropic.evaluation.results import Results, results_at

    def results_of(path: Path) -> Results:
        return results_at(path) if path.is_file() or not options.sets else _evaluated(options, path, settings_of)

    first, second = (results_of(path.expanduser()) for path in options.compare)
    compared = compare(first, second)
    print("\n".join([f"A  {first.model}", f"B  {second.model}", *map(str, compared)]))
    if options.out:
        out = options.out.expanduser()
        write_atomically(out, (json.dumps(comparison_json(first, second, compared), indent=1) + "\n").encode())
        print(f"written to {out}")
    return 0


def _evaluated(options: argparse.Namespace, model: Path, settings_of: SettingsOf) -> "Results":
    cfg = settings_of(model)
    sets = [_resized(each, options) for each in chosen_sets(options.sets, cfg.validation.sets)]

    from megatron_entropic.evaluation.evaluate_sets import evaluate_sets
    from megatron_entropic.start_checks.model import check_model

    check_model(cfg)
    return evaluate_sets(cfg, sets, str(model))


def chosen_sets(words: Sequence[str], of_run: Sequence[ValidationSet]) -> list[ValidationSet]:
    """The sets that `--sets` names: of the run by name, else presets; NAME=FILE: a file, read as a preset of that name says.

    A comma separates, except in a word whose file is there as it stands. Raises ConfigError with the nearest name.
    """
    known: dict[str, Any] = {each.name: asdict(each) for each in of_run}
    chosen: list[Any] = []
    for item in [item for word in words for item in _items(word)]:
        name, equals, path = item.partition("=")
        if equals:
            chosen.append({"name": name, "path": str(Path(path).expanduser())})
        elif name in known or name in PRESETS:
            chosen.append(known.get(name, name))
        else:
            close = difflib.get_close_matches(name, [*known, *PRESETS], n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ConfigError(f"--sets {name}: no set of the run and no preset{hint}; for a file write {name}=FILE")
    return list(from_dict({"validation": {"sets": chosen}}, origin="--sets").validation.sets)


def _items(word: str) -> list[str]:
    name, equals, path = word.partition("=")
    whole = equals and "," not in name and Path(path).expanduser().exists()
    return [word] if whole else [item.strip() for item in word.split(",") if item.strip()]


def _resized(settings: ValidationSet, options: argparse.Namespace) -> ValidationSet:
    """The set with the samples, temperature and number of problems of the command line."""
    temperature = settings.temperature if options.temperature is None else options.temperature
    samples = options.samples or settings.samples
    if temperature == 0:
        return replace(settings, temperature=0.0, samples=1, pass_at=0, greedy=False, limit=options.prompts or settings.limit)
    pass_at = settings.pass_at if settings.pass_at <= samples else 0
    return replace(settings, temperature=temperature, samples=samples, pass_at=pass_at, limit=options.prompts or settings.limit)
