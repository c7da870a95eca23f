"""Submits a job: `python -m slurm.submit train RECIPE [section.field=value ...] --nodes 3 --partition gpu`; `--dry-run` only prints.

It builds one sbatch command line, so whoever prefers sbatch can start from what --dry-run prints.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from slurm.convert_job import TOOLS
from slurm.options import add_launch_options, add_train_options, container_of

HERE = Path(__file__).resolve().parent

# Options of sbatch with a value, given on as they are; those of a het job's fleet are --fleet-NAME.
SBATCH = {
    "account": "account to charge",
    "partition": "partition, or several by commas",
    "qos": "quality of service",
    "reservation": "reservation to run in",
    "constraint": "features the nodes must have",
    "time": "time limit, such as 24:00:00",
    "nodes": "number of nodes",
    "gpus-per-node": "GPUs of each node to use",
    "cpus-per-task": "cores of each node to use (jobs have one task a node; default: all, with --exclusive)",
    "mem": "memory of each node to use",
    "exclude": "nodes not to use",
    "nodelist": "nodes that must be used",
}
_OF_THE_JOB = {
    "job-name": "name of the job",
    "array": "tasks of a job array, such as 0-7 or 0-63%%8; see --sweep",
    "dependency": "when it may start, such as afterany:1234",
    "signal": "when the batch script is warned before the time limit (default: B:USR1@300, five minutes)",
    "output": "file of the job's output",
    "mail-type": "events to write a mail about",
    "comment": "a comment",
}
_FLEET = (
    "partition",
    "constraint",
    "nodes",
    "gpus-per-node",
    "cpus-per-task",
    "mem",
    "exclude",
    "nodelist",
    "account",
    "qos",
    "reservation",
)


def parser() -> argparse.ArgumentParser:
    """The options of `python -m slurm.submit`: SLURM's, the launcher's, and its own."""
    top = argparse.ArgumentParser(prog="python -m slurm.submit", description=__doc__.split("\n\n")[0] if __doc__ else None)
    kinds = top.add_subparsers(required=True, metavar="JOB", dest="job")
    train = kinds.add_parser("train", allow_abbrev=False, help="train a recipe, or resume its run")
    train.add_argument("source", metavar="RECIPE", help="a recipe's name or file, a saved config.yaml, or a run's folder")
    train.add_argument("overrides", nargs="*", metavar="section.field=value", help="settings to change")
    convert = kinds.add_parser("convert", allow_abbrev=False, help="convert a checkpoint: import|export and their arguments, after --")
    convert.add_argument("arguments", nargs="+", metavar="import|export ...", help="arguments of checkpoint_tools")
    for kind in (train, convert):
        slurm = kind.add_argument_group("SLURM (as sbatch knows them)")
        for name, meaning in {**SBATCH, **_OF_THE_JOB}.items():
            slurm.add_argument(f"--{name}", help=meaning)
        slurm.add_argument(
            "--sbatch-arg", action="append", default=[], metavar="ARG", help="any other argument of sbatch, such as --gres=gpu:8"
        )
        slurm.add_argument("--dry-run", action="store_true", help="print the command instead of running it")
    fleet = train.add_argument_group(
        "heterogeneous job (any of these makes one)", "flags of the fleet's nodes; those above are the trainer's"
    )
    for name in _FLEET:
        fleet.add_argument(f"--fleet-{name}", help=SBATCH[name])
    add_train_options(train)
    for kind in (train, convert):
        add_launch_options(kind)
    return top


def command(arguments: Sequence[str] | None = None) -> tuple[list[str], bool]:
    """(the sbatch command line, whether it is only to be printed). Ends the program for bad options.

    For a sweep it also writes the file of its tasks.
    """
    top = parser()
    options, rest = top.parse_known_args(arguments)
    takes_overrides = options.job == "train"
    unknown = [word for word in rest if word.startswith("-") or not takes_overrides]
    if unknown:
        top.error(f"unrecognized arguments: {' '.join(unknown)}")
    try:
        container_of(options, gpus=True)
    except ValueError as error:
        top.error(str(error))
    if options.job == "convert" and options.arguments[0] not in TOOLS:
        top.error(f"convert needs one of {', '.join(TOOLS)} first, not {options.arguments[0]!r}")
    if options.job == "train":
        rest = _take_sweep(top, options, rest)
    given = vars(options)
    flags = [f"--{name}={given[_dest(name)]}" for name in {**SBATCH, **_OF_THE_JOB} if given[_dest(name)]] + options.sbatch_arg
    fleet = [f"--{name}={given['fleet_' + _dest(name)]}" for name in _FLEET if given.get("fleet_" + _dest(name))]
    script = {"train": "train_het.sbatch" if fleet else "train.sbatch", "convert": "convert.sbatch"}[options.job]
    what = [*options.arguments] if options.job == "convert" else [options.source, *options.overrides, *rest]
    launcher = launcher_flags(given)
    split = [":", *fleet] if fleet else []
    end = [*launcher, *what] if options.job == "convert" else [*what, *launcher]
    return ["sbatch", *flags, *split, str(HERE / script), *end], options.dry_run


def _take_sweep(top: argparse.ArgumentParser, options: argparse.Namespace, rest: Sequence[str]) -> list[str]:
    """The overrides for all tasks. Those of a sweep by commas go into a file, one run a line, which `options` then names."""
    if options.sweep and "=" in options.sweep and not Path(options.sweep).is_file():  # --sweep stood in front of an override
        rest, options.sweep = [options.sweep, *rest], ""
    if options.sweep != "":
        return list(rest)
    from slurm.sweep import SweepError, write_sweep  # here: the settings are read by the run's own environment, which sbatch needs not

    try:
        found = write_sweep(options.source, [*options.overrides, *rest])
    except SweepError as error:
        top.error(str(error))
    if options.array is not None:
        top.error(f"--array={options.array}: --sweep without a file says itself which tasks there are; --array=0-7%2 goes with a file")
    if not found.tasks:
        top.exit(message=f"{found.file.parent}: all runs of this sweep are done\n")
    options.sweep, options.array, options.overrides = str(found.file), ",".join(map(str, found.tasks)), []
    return []


def _dest(name: str) -> str:
    return name.replace("-", "_")


def launcher_flags(given: dict[str, object]) -> list[str]:
    """The launcher's options that are not at their defaults."""
    reference = argparse.ArgumentParser(add_help=False)
    add_launch_options(reference)
    if given["job"] == "train":
        add_train_options(reference)
    flags = []
    for name, default in vars(reference.parse_args([])).items():
        value = given[name]
        values = value if isinstance(value, list) else [value] if value != default else []
        flags += [f"--{name.replace('_', '-')}={each}" for each in values]
    return flags


def make_output_folder(words: Sequence[str]) -> None:
    """Makes the folder of --output: SLURM does not, and a job whose output has no folder fails without a word."""
    for word in words:
        folder = Path(word.removeprefix("--output=")).parent
        if word.startswith("--output=") and "%" not in str(folder):
            folder.mkdir(parents=True, exist_ok=True)


def main() -> None:
    """Submits, or prints the command. The scripts find this checkout through ENTROPIC_ROOT."""
    words, dry_run = command()
    if dry_run:
        print(shlex.join(words))
        return
    make_output_folder(words)
    environ = {**os.environ, "ENTROPIC_ROOT": os.environ.get("ENTROPIC_ROOT", str(HERE.parent))}
    sys.exit(subprocess.run(words, env=environ, check=False).returncode)


if __name__ == "__main__":
    main()
