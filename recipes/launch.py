"""Runs a recipe through NeMo-Run: on this machine, or as a SLURM job, from here or over SSH.

Nothing but this and recipes/nemo/ uses NeMo-Run, in an environment of its own that has neither torch nor megatron nor vllm.
"""

import argparse
import getpass
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_entropic.config import Config
from megatron_entropic.config.loading import ConfigError, load_config
from megatron_entropic.errors import ReportedError
from recipes.nemo.home import ROOT, use_home
from slurm.options import add_launch_options, add_train_options, container_of
from slurm.submit import SBATCH, launcher_flags

EXIT_USAGE = 2
EXECUTORS = ("local", "slurm", "slurm-het")

EPILOG = """examples, after `make env-launch`, with PY=.venv-launch/bin/python:
  $PY -m recipes.launch quickstart --executor local trainer.steps=10
  $PY -m recipes.launch quickstart --executor slurm --nodes 3 --gpus-per-node 8 --partition gpu --time 24:00:00 --dryrun
  $PY -m recipes.launch quickstart --executor slurm-het --nodes 2 --gpus-per-node 8 --fleet-nodes 1 --fleet-gpus-per-node 4
  $PY -m recipes.launch quickstart --executor slurm --host login.cluster --user me --identity ~/.ssh/id --root /home/me/entropic
  $PY -m recipes.launch quickstart --executor slurm --container pyxis --image /images/entropic.sqsh --mount /data

A SLURM job is slurm/train.sbatch, with all it does: preflight, resuming after preemption, logs. The same job submitted again goes
on with its run. --dryrun prints the very script that sbatch would get. NeMo-Run's own tools work on what was started, with its folder
in NEMORUN_HOME: `nemo experiment logs ID`. In Python: recipes/nemo/factories.py. More: docs/nemo_run.md."""


def parser() -> argparse.ArgumentParser:
    """The options of `python -m recipes.launch`."""
    top = argparse.ArgumentParser(
        prog="python -m recipes.launch",
        usage="python -m recipes.launch RECIPE [section.field=value ...] [--executor local|slurm|slurm-het] [--dryrun] [options]",
        description=(__doc__ or "").split("\n\n")[0],
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.add_argument("source", metavar="RECIPE", nargs="?", help="a recipe's name or file, a saved config.yaml, or a run's folder")
    top.add_argument("overrides", nargs="*", metavar="section.field=value", help="settings to change, as for `megatron-entropic train`")
    top.add_argument("--list", action="store_true", help="list the recipes, each a NeMo-Run factory, and stop")
    top.add_argument("--executor", choices=EXECUTORS, default="local", help="where to run (default: %(default)s)")
    top.add_argument("--dryrun", action="store_true", help="print what would run, or be submitted, and stop")
    top.add_argument("--home", type=Path, metavar="DIR", help="NeMo-Run's folder (default: $NEMORUN_HOME, else build/launch)")
    here = top.add_argument_group("on this machine")
    here.add_argument("--overwrite", action="store_true", help="delete the run's folder first if it holds an earlier run")
    here.add_argument("--resume", action="store_true", help="resume the run in the folder RECIPE")
    job = top.add_argument_group("SLURM (as sbatch knows them)")
    for name, meaning in SBATCH.items():
        job.add_argument(f"--{name}", help=meaning)
    job.add_argument("--array", help="tasks of a job array, such as 0-7 or 0-63%%8; see --sweep")
    job.add_argument("--sbatch-arg", action="append", default=[], metavar="--NAME=VALUE", help="any other argument of sbatch")
    job.add_argument("--fleet-nodes", type=int, metavar="N", help="slurm-het: nodes that serve (default: 1)")
    job.add_argument("--fleet-gpus-per-node", metavar="N", help="slurm-het: their GPUs (default: those of --gpus-per-node)")
    job.add_argument("--wait", action="store_true", help="stay until the job has ended, showing its output; needs SLURM's accounting")
    tunnel = top.add_argument_group("submitting over SSH")
    tunnel.add_argument("--host", help="the cluster's login node; without it sbatch is called here")
    tunnel.add_argument("--user", help="name there (default: the one here)")
    tunnel.add_argument("--port", type=int, help="SSH's port (default: 22)")
    tunnel.add_argument("--identity", metavar="FILE", help="private key (default: SSH's agent and keys, else it asks for a password)")
    tunnel.add_argument("--root", type=Path, metavar="DIR", help="folder of this project on the cluster (with --host; needed)")
    add_train_options(top)
    add_launch_options(top)
    return top


def main(arguments: Sequence[str] | None = None) -> None:
    """Ends with 0 when the job is submitted, or ended well; errors are one line."""
    top = parser()
    options, rest = top.parse_known_args(arguments)
    if unknown := [word for word in rest if word.startswith("-")]:
        top.error(f"unrecognized arguments: {' '.join(unknown)}")
    options.overrides += rest
    try:
        if options.list:
            sys.exit(_list(options))
        if options.source is None:
            top.error("a RECIPE is needed; --list lists them")
        sys.exit(_launch(options))
    except (ReportedError, ValueError, OSError) as error:
        print(f"recipes.launch: error: {error}", file=sys.stderr)
        sys.exit(EXIT_USAGE)


def _list(options: argparse.Namespace) -> int:
    """Prints every recipe with what it is."""
    _use_nemo_run(options.home)
    from recipes.nemo.factories import names, summary

    width = max(map(len, names()))
    for name in names():
        print(f"{name:<{width}}  {summary(name)}")
    return 0


def _launch(options: argparse.Namespace) -> int:
    """Shows the job or starts it; returns the exit code."""
    _refuse_flags_of_others(options)
    config = _config(options)
    _use_nemo_run(options.home)
    from recipes.nemo.experiment import shown, start

    executor, task = _local(options) if options.executor == "local" else _slurm(options)
    if options.dryrun:
        print(shown(config.run.name, task, executor), end="")
        return 0
    return start(config.run.name, task, executor, wait=options.wait or options.executor == "local")


def _use_nemo_run(home: Path | None) -> None:
    """Loads NeMo-Run. Raises ConfigError where it is not installed."""
    use_home(home)
    try:
        importlib.import_module("nemo_run")
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{error.name} is not installed for {sys.executable}: NeMo-Run has an environment of its own; run `make env-launch`, "
            "then .venv-launch/bin/python -m recipes.launch"
        ) from None


def _refuse_flags_of_others(options: argparse.Namespace) -> None:
    """Raises ConfigError for a flag that the chosen executor would ignore."""
    given = vars(options)
    of_jobs = [name for name in (*SBATCH, "array", "sbatch-arg", "wait", "host") if given[name.replace("-", "_")]]
    if options.executor == "local":
        others = [f"--{name}" for name in of_jobs] + [flag for flag in _launcher_words(options) if not flag.startswith("--python=")]
    else:
        others = [f"--{name}" for name in ("overwrite", "resume") if given[name]]
    if options.executor != "slurm-het":
        others += [f"--{name.replace('_', '-')}" for name in ("fleet_nodes", "fleet_gpus_per_node") if given[name] is not None]
    if options.host is None:
        others += [f"--{name} (without --host)" for name in ("user", "port", "identity", "root") if given[name]]
    container_of(options, gpus=True)
    if others:
        raise ConfigError(f"not for --executor {options.executor}: {', '.join(others)}")


def _config(options: argparse.Namespace) -> Config:
    """The settings of the run, so that a wrong one is found here and not in the job. Raises ConfigError."""
    saved = Path(options.source) / "config.yaml"
    if options.host and (Path(options.source).suffix or saved.is_file()):
        raise ConfigError(f"{options.source}: with --host give a recipe's name; files are looked for on the cluster")
    return load_config(saved if saved.is_file() else options.source, options.overrides)


def _local(options: argparse.Namespace) -> tuple[Any, Any]:
    """Executor and task on this machine."""
    from recipes.nemo.executors import local, run_here

    flags = [f"--{name}" for name in ("overwrite", "resume") if vars(options)[name]]
    return local(), run_here([options.source, *options.overrides, *flags], options.python)


def _slurm(options: argparse.Namespace) -> tuple[Any, Any]:
    """Executor, or both executors of a heterogeneous job, and task of a job on SLURM."""
    from recipes.nemo.executors import run_launcher, slurm, slurm_het

    given = vars(options)
    flags = {name.replace("-", "_"): given[name.replace("-", "_")] for name in (*SBATCH, "array")}
    for argument in options.sbatch_arg:
        name, _, value = argument.removeprefix("--").partition("=")
        flags[name.replace("-", "_")] = value or True
    flags = {"chdir": str(options.root or Path.cwd()), **{name: value for name, value in flags.items() if value is not None}}
    words = [options.source, *options.overrides, *_launcher_words(options)]
    root, tunnel = options.root or ROOT, _tunnel(options)
    if options.executor == "slurm":
        executor = slurm(tunnel, **flags)
        return executor, run_launcher(executor, words, root=root)
    fleet = {name: given[name] for name in ("fleet_nodes", "fleet_gpus_per_node") if given[name] is not None}
    executors = slurm_het(tunnel, **flags, **fleet)
    return executors, run_launcher(executors[0], words, root=root, het=True)


def _launcher_words(options: argparse.Namespace) -> list[str]:
    """The options that go to slurm.launch."""
    return launcher_flags({**vars(options), "job": "train"})


def _tunnel(options: argparse.Namespace) -> Any:
    """NeMo-Run's way to the cluster; None where this machine is of it. Raises ConfigError."""
    if options.host is None:
        return None
    if options.root is None:
        raise ConfigError("--host needs --root, the folder of this project on the cluster")
    from recipes.nemo.executors import over_ssh

    return over_ssh(options.host, options.user or getpass.getuser(), options.root, port=options.port, identity=options.identity)


if __name__ == "__main__":
    main()
