"""Tells the launcher about a run, from the run's own environment: one line of JSON, or one line that says what is wrong."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_entropic.checkpoint_files.kind import model_folder
from megatron_entropic.config import Config
from megatron_entropic.config.loading import ConfigError, load_config, override
from megatron_entropic.errors import ReportedError
from slurm.split import DESCRIPTION, Description

_CHECKPOINT_BYTES = 14
"""Of a parameter in a checkpoint: fp32 master and two moments, and the weight in 16 bits."""


def describe(source: str, overrides: Sequence[str], sweep: Path | None = None, task: int | None = None) -> Description:
    """The description of the run that a training job is to start or resume. Raises ConfigError."""
    overrides = [*overrides, *_sweep_overrides(sweep, task)]
    if (Path(source) / "config.yaml").is_file():
        overrides.append(override("run.dir", Path(source)))
        source = str(Path(source) / "config.yaml")
    cfg = load_config(source, overrides)
    if sweep and not any(word.startswith(("run.name=", "run.dir=")) for word in overrides):
        overrides.append(override("run.name", f"{cfg.run.name}-{task}"))
        cfg = load_config(source, overrides)
    uses_servers = cfg.rollout.engine == "vllm"
    return Description(
        run_dir=str(cfg.run_dir),
        has_run=(cfg.run_dir / "config.yaml").is_file(),
        overrides=list(overrides),
        world_size=cfg.parallel.world_size,
        uses_servers=uses_servers,
        servers=cfg.rollout.servers if uses_servers else 0,
        server_gpus=cfg.rollout.tensor,
        model=str(cfg.model.hf_path),
        run_dir_bytes=_run_dir_bytes(cfg),
        shares_gpus=cfg.rollout.share_gpu,
        device=cfg.parallel.device,
    )


def _sweep_overrides(sweep: Path | None, task: int | None) -> list[str]:
    """The overrides of this task of a job array."""
    if sweep is None:
        return []
    lines = [line for line in sweep.read_text(encoding="utf-8").splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if task is None:
        raise ConfigError(f"--sweep {sweep} needs a job array: sbatch --array=0-{len(lines) - 1}")
    if task >= len(lines):
        raise ConfigError(f"{sweep}: task {task} has no line; it holds {len(lines)}: sbatch --array=0-{len(lines) - 1}")
    return shlex.split(lines[task])


def _run_dir_bytes(cfg: Config) -> int:
    """Space that the kept checkpoints, the one being written and the exported model take, from the size of the weights."""
    folder = model_folder(cfg.model.hf_path).weights
    weights = sum(file.stat().st_size for file in folder.iterdir() if file.is_file()) if folder.is_dir() else 0
    checkpoints = (cfg.checkpoint.keep or 1) + 1 if cfg.checkpoint.every else 0
    return weights + weights // 2 * _CHECKPOINT_BYTES * checkpoints


def main() -> None:
    """Prints the description; exit code 2 and one line when the settings cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m slurm.describe", description=__doc__)
    parser.add_argument("source", metavar="RECIPE")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value")
    parser.add_argument("--sweep", type=Path)
    parser.add_argument("--task", type=int)
    options = parser.parse_args()
    try:
        found = describe(options.source, options.overrides, options.sweep, options.task)
    except (ReportedError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(DESCRIPTION + json.dumps(dataclasses.asdict(found)))


if __name__ == "__main__":
    main()
