"""Runs a recipe through NeMo-Run: on this machine, or as a SLURM job, from here or over SSH.

Nothing but this and recipes/nemo/ uses NeMo-Run, in an environment of its own that has neither torch nor megatron nor vllm.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_entropic.config import Config
from megatron_entropic.config_loading import ConfigError, load_config
from megatron_entropic.errors import ReportedError
from slurm.options import add_launch_options, add_train_options, container_of
from slurm.submit import SBATCH, _launcher_flags

ROOT = Path(__file__).resolve().parent.parent
EXIT_USAGE = 2
EXECUTORS = ("local", "slurm", "slurm-het")
PYTHON = ".venv/bin/python"

EPILOG = """examples, after `make env-launch`, with PY=.venv-launch/bin/python:
  $PY -m recipes.launch quickstart --executor local trainer.steps=10
  $PY -m recipes.launch quickstart --executor slurm --nodes 3 --gpus-per-node 8 --partition gpu --time 24:00:00 --dryrun
  $PY -m recipes.launch quickstart --executor slurm-het --nodes 2 --gpus-per-node 8 --fleet-nodes 1 --fleet-gpus-per-node 4
  $PY -m recipes.launch quickstart --executor slurm --host login.cluster --user me --identity ~/.ssh/id --root /home/me/entropic
  $PY -m recipes.launch quickstart --executor slurm --container pyxis --image /images/entropic.sqsh --mount /data

A SLURM job is slurm/train.sbatch, with all it does: preflight, resuming after preemption, logs. The same job submitted again goes
on with its run. --dryrun prints the very script that sbatch would get. `nemo experiment logs ID` and the like work on submitted
jobs, with NEMORUN_HOME set to --home. In Python: recipes/nemo/factories.py. More: docs/nemo_run.md."""


def parser() -> argparse.ArgumentParser:
    """The options of `python -m recipes.launch`."""
    top = argparse.ArgumentParser(
        prog="python -m recipes.launch",
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
    here.add_argument("--resume", action="store_true", help="go on with the run in the folder RECIPE")
    job = top.add_argument_group("SLURM (as sbatch knows them)")
    for name, meaning in SBATCH.items():
        job.add_argument(f"--{name}", help=meaning)
    job.add_argument("--array", help="tasks of a job array, such as 0-7 or 0-63%%8; see --sweep")
    job.add_argument("--sbatch-arg", action="append", default=[], metavar="--NAME=VALUE", help="any other argument of sbatch")
    job.add_argument("--fleet-nodes", type=int, default=1, metavar="N", help="slurm-het: nodes that serve (default: %(default)d)")
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
            sys.exit(_list())
        if options.source is None:
            top.error("a RECIPE is needed; --list lists them")
        sys.exit(_launch(options))
    except (ReportedError, ValueError, OSError) as error:
        print(f"recipes.launch: error: {error}", file=sys.stderr)
        sys.exit(EXIT_USAGE)
