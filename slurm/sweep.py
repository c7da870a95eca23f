"""The file of a job array's tasks for a sweep by commas: `python -m slurm.submit train RECIPE trainer.seed=0,1,2 --sweep`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FILE = "sweep.txt"


class SweepError(ValueError):
    """The sweep cannot be submitted; the message says why."""


@dataclass(frozen=True)
class SweepFile:
    """Overrides of each run, a line each, and the numbers (from 0) of those that are not done."""

    file: Path
    tasks: list[int]


def write_sweep(source: str, overrides: Sequence[str]) -> SweepFile:
    """Writes runs/NAME/sweep.txt. A run that was begun is resumed by its task, one that failed tried again. Raises SweepError."""
    try:
        from megatron_entropic.commands.sweep_state import SweepState, plan_sweep
        from megatron_entropic.config.sweep import sweep_runs
        from megatron_entropic.errors import ReportedError
        from megatron_entropic.system.atomic_files import write_atomically
    except ImportError as error:
        raise SweepError(f"--sweep without a file reads the settings, which needs the run's own environment: {error}") from error
    try:
        folder, runs = sweep_runs(source, overrides)
        planned = plan_sweep(runs)
    except (ReportedError, ValueError) as error:
        raise SweepError(str(error)) from error
    lines = [shlex.join(run.overrides) for run in runs]
    file = write_atomically(folder / FILE, ("\n".join(lines) + "\n").encode())
    return SweepFile(file, [number for number, each in enumerate(planned) if each.state is not SweepState.DONE])
