"""`megatron-entropic serve`, `doctor` and `slurm-files`: what is asked of a machine, not of a run."""

import argparse
import dataclasses
import os
from pathlib import Path
from typing import Any

from megatron_entropic.config import Config
from megatron_entropic.config.loading import ConfigError, load_config
from megatron_entropic.doctor.smoke.table import DEFAULT_JSON, PARTS
from megatron_entropic.system.shipped_files import slurm_folder


def add_serve(commands: "argparse._SubParsersAction[Any]") -> None:
    """Adds the command `serve`."""
    serve = commands.add_parser(
        "serve",
        allow_abbrev=False,
        help="start a run's vLLM servers on this machine for a trainer elsewhere",
        description="Starts servers of a run here, announces them in the folder rollout.fleet_dir, and stays until it is told to end. "
        "A run with the same rollout.fleet_dir then samples from them. On a cluster the job does this by itself.",
        epilog="Example: megatron-entropic serve quickstart rollout.servers=2 rollout.fleet_dir=/shared/fleet rollout.host=10.0.0.7",
    )
    serve.add_argument("source", metavar="RECIPE", help="as for train, or the folder of a run")
    serve.add_argument("overrides", nargs="*", metavar="section.field=value", help="settings to change; the trainer needs the same")
    serve.add_argument(
        "--share",
        metavar="K/N",
        help="start part K (from 0) of N equal parts of the servers (default: under srun one a task, else all)",
    )
    serve.set_defaults(command=_serve)


def add_doctor(commands: "argparse._SubParsersAction[Any]") -> None:
    """Adds the command `doctor`."""
    doctor = commands.add_parser(
        "doctor",
        allow_abbrev=False,
        help="check this machine: its hardware, what each part of a run will use, and problems",
        description="Looks at the environment, GPUs, network, SLURM and free space, and says which path each part of a run takes "
        "here.\n"
        "Exit code 0 when nothing keeps a run from working, else 1.",
        epilog=_smoke_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    doctor.add_argument("source", nargs="?", metavar="RECIPE", help="also look at this run's model and folder")
    doctor.add_argument("overrides", nargs="*", metavar="section.field=value", help="settings to change")
    doctor.add_argument("--gpu-smoke", action="store_true", help="run each part of the stack on this machine, in about ten minutes")
    doctor.add_argument("--only", metavar="PART[,PART]", help="with --gpu-smoke: these parts alone")
    doctor.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help=f"with --gpu-smoke: everything found goes here (default: {DEFAULT_JSON}); logs beside it",
    )
    doctor.set_defaults(command=_doctor)


def add_slurm_files(commands: "argparse._SubParsersAction[Any]") -> None:
    """Adds the command `slurm-files`."""
    files = commands.add_parser(
        "slurm-files",
        allow_abbrev=False,
        help="print the folder of the sbatch files",
        description="Prints the folder with train.sbatch, train_het.sbatch and convert.sbatch, in a checkout or installed.",
        epilog='Example: sbatch --nodes=3 "$(megatron-entropic slurm-files)/train.sbatch" quickstart',
    )
    files.set_defaults(command=_slurm_files)


def _slurm_files(_: argparse.Namespace) -> int:
    """Prints where the sbatch files lie."""
    print(slurm_folder())
    return 0


def _serve(options: argparse.Namespace) -> int:
    """Runs vLLM servers until this process is told to end."""
    from megatron_entropic.rollout.vllm.serve import serve, serving_address

    run_config = Path(options.source) / "config.yaml"
    cfg = load_config(run_config if run_config.is_file() else options.source, options.overrides)
    if cfg.rollout.host == Config().rollout.host:
        cfg = dataclasses.replace(cfg, rollout=dataclasses.replace(cfg.rollout, host=serving_address(os.environ)))
    serve(cfg, _part(options.share))
    return 0


def _part(text: str | None) -> tuple[int, int]:
    """K/N of `serve --share`, by default from srun's variables. Raises ConfigError unless 0 <= K < N."""
    text = text or f"{os.environ.get('SLURM_PROCID', '0')}/{os.environ.get('SLURM_STEP_NUM_TASKS', '1')}"
    part, _, parts = text.partition("/")
    if not (part.isdigit() and parts.isdigit() and int(part) < int(parts)):
        raise ConfigError(f"--share={text}: K/N with 0 <= K < N is needed, such as 0/2")
    return int(part), int(parts)


def _smoke_help() -> str:
    """The parts of `doctor --gpu-smoke`, for its help."""
    width = max(len(part.name) for part in PARTS) + 2
    parts = "\n".join(f"  {part.name:<{width}}{part.shows}" for part in PARTS)
    return (
        "The first command on a machine with a GPU: megatron-entropic doctor --gpu-smoke\n\n"
        f"It tries the stack part by part, each in a process of its own with a time limit:\n\n{parts}\n\n"
        "A part that fails does not keep the others from running; its last lines and its log's place are shown. What cannot be tried\n"
        "is named with the reason. Without a GPU the same command takes tiny shapes and gloo. Exit code 0 when every part that could\n"
        "be tried passed, else 1. One part again: megatron-entropic doctor --gpu-smoke --only kernels"
    )


def _doctor(options: argparse.Namespace) -> int:
    """Prints what this machine has and what is wrong with it, or tries it out."""
    if options.gpu_smoke:
        return _gpu_smoke(options)
    if options.only is not None or options.json is not None:
        raise ConfigError("--only and --json go with --gpu-smoke")
    from megatron_entropic.doctor.diagnosis import diagnose

    diagnosis = diagnose(load_config(options.source, options.overrides) if options.source else None)
    print(diagnosis)
    return 1 if diagnosis.problems else 0


def _gpu_smoke(options: argparse.Namespace) -> int:
    from megatron_entropic.doctor.smoke.command import smoke

    if options.source:
        raise ConfigError(f"--gpu-smoke takes no recipe, and {options.source} was given: it brings models and settings of its own")
    return smoke(None if options.only is None else options.only.split(","), options.json or DEFAULT_JSON)
