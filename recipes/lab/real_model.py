"""The command `python -m recipes.lab --model NAME`: a pretrained model under entropy control, for hours, resumable everywhere."""

import argparse
import dataclasses
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_entropic.checkpoint_files.kind import model_folder
from megatron_entropic.config.loading import ConfigError
from megatron_entropic.errors import ReportedError
from megatron_entropic.hf.architectures import Architecture
from megatron_entropic.system.folder_lock import FolderLock
from megatron_entropic.system.stop_signal import EXIT_STOPPED
from recipes.lab.real_model_numbers import numbers_of
from recipes.lab.real_model_runs import PLANS, Plan, RealRun
from recipes.lab.real_model_training import LabError, run_all, state_of
from recipes.lab.watched_command import Commands, Stopped

EXIT_FAILED, EXIT_USAGE = 1, 2
NICENESS = 10

EPILOG = """examples, with LAB="python -m recipes.lab --model {model}":
  $LAB --list                               the runs, how far each is, and its settings
  $LAB --only ours-1.0-seed0                one run
  $LAB --only 'ours-*-seed0' grpo-seed0     several; patterns in quotes
  nohup $LAB > lab.out 2>&1 &               all that is missing, in the background; hours
  $LAB --report                             page, picture and numbers of what is there, complete or not: OUT/report
  $LAB --report docs                        the same under docs/
  $LAB --updates 2 --out /tmp/try           a try of two updates a run
  $LAB --only ours-1.0-seed0 --out runs/other control.actuator=surprisal     with another setting, in a folder of its own

Runs go one after the other, at low priority. Ctrl-C (or SIGTERM) lets the run save and stops; a second one stops at once. The same
command resumes: with the runs that are missing, and within a run from its latest checkpoint, which there is every {every} updates. One
lab at a time works in a folder. Of OUT/NAME, metrics.jsonl is written update by update; `megatron-entropic report OUT/NAME` draws it at
any time. A finished run is scored on sums that no run was trained on (greedy.json, sampled.json), then its checkpoints and its
weights are removed."""


def main(model: str, arguments: Sequence[str]) -> None:
    """Ends with 0 when all is done, 1 when a run failed, 2 for an error that is told in one line, 75 when stopped: resume later."""
    plan = PLANS[model]
    options = _parser(plan).parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        sys.exit(_lab(_planned(plan, options), options))
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(EXIT_STOPPED)
    except (ReportedError, ValueError, OSError) as error:
        print(f"recipes.lab: error: {error}", file=sys.stderr)
        sys.exit(EXIT_USAGE)


def _parser(plan: Plan) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m recipes.lab --model {plan.model}",
        description=f"Trains {plan.about} under each kind of entropy control, {plan.updates} updates a run, and scores the policies.",
        epilog=EPILOG.format(model=plan.model, every=plan.checkpoint_every),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    folder = Path("runs") / f"lab_{plan.model}"
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="settings of all runs, after their own")
    parser.add_argument("--out", type=Path, default=folder, help="folder of the runs (default: %(default)s)")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="only runs of these names or patterns")
    parser.add_argument("--updates", type=int, default=plan.updates, metavar="N", help="updates a run (default: %(default)s)")
    parser.add_argument("--list", action="store_true", help="print the runs, how far they are and their settings, and stop")
    parser.add_argument(
        "--report",
        type=Path,
        nargs="?",
        const=Path(),
        metavar="DOCS",
        help="only write page, picture and numbers of what is there, under DOCS (default: OUT/report)",
    )
    return parser


def _planned(plan: Plan, options: argparse.Namespace) -> Plan:
    """The plan as the options have it. NAMEs after --only may have settings behind them. Raises ConfigError."""
    if options.updates < 1:
        raise ConfigError(f"--updates={options.updates}: at least 1 is needed")
    if options.report is not None and "=" in str(options.report):
        raise ConfigError(f"--report {options.report}: a folder is needed; settings go before --report")
    settings = [word for word in options.only if "=" in word]
    options.only = [word for word in options.only if "=" not in word]
    return dataclasses.replace(plan, updates=options.updates, overrides=(*plan.overrides, *options.overrides, *settings))


def _lab(plan: Plan, options: argparse.Namespace) -> int:
    runs = plan.choose(options.only)
    if options.list:
        _list(plan, runs, options.out)
        return 0
    if options.report is not None:
        return _report(plan, options.out, options.out / "report" if options.report == Path() else options.report)
    _check_model(plan, runs)
    os.nice(NICENESS)
    with FolderLock(options.out, "the lab") as lock, Commands(lock.descriptor) as commands:
        failed = run_all(plan, runs, options.out, commands)
    _report(plan, options.out, options.out / "report")
    for run in runs:
        print(_summary(plan, run, options.out))
    if failed:
        print(f"failed: {', '.join(failed)}; see OUT/NAME.out, then call the lab again", file=sys.stderr)
    return EXIT_FAILED if failed else 0


def _list(plan: Plan, runs: Sequence[RealRun], out: Path) -> None:
    """A line a run."""
    for run in runs:
        settings = " ".join((plan.recipe, *run.overrides, *plan.overrides, f"trainer.seed={run.seed}"))
        print(f"{state_of(out / run.name).text(plan, run):<10} {run.name:<15} {run.title}: {settings if run.trained else plan.recipe}")


def _report(plan: Plan, out: Path, docs: Path) -> int:
    """Writes the page of all runs, and says where."""
    from recipes.lab.real_model_page import write_page

    print(write_page(plan, out, docs))
    return 0


def _check_model(plan: Plan, runs: Sequence[RealRun]) -> None:
    """Raises LabError where the model is not, ConfigError for settings that cannot be."""
    for run in runs:
        folder = model_folder(plan.config(run).model.hf_path).hf_dir
        if not (folder / "config.json").is_file():
            raise LabError(f"{folder}: there is no model; make it first: {plan.hint}")
    Architecture.from_hf(model_folder(plan.config(runs[0]).model.hf_path).hf_dir)
    plan.held_out()


def _summary(plan: Plan, run: RealRun, out: Path) -> str:
    """A run's headline numbers."""
    from recipes.lab.real_model_page import COLUMNS, cells

    texts = cells(numbers_of(plan, run, out))
    pairs = zip(COLUMNS[1:], texts[1:], strict=True)
    return f"{run.name}: " + ", ".join(f"{name.replace('K', str(plan.samples))} {text}" for name, text in pairs if text != "-")
