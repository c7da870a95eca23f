"""From a task and its executor to a NeMo-Run experiment: shown as what would be submitted, or run."""

import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fiddle
import nemo_run as run
from invoke.exceptions import UnexpectedExit
from torchx.specs import AppState
from torchx.specs.api import parse_app_handle

from recipes.nemo.executors import LaunchError, local, run_here, run_launcher

_QUIET: dict[str, Any] = {"clean_mode": True, "log_level": "WARNING"}


def shown(name: str, task: run.Script, executor: Any) -> str:
    """The command that would run on this machine, or the script that sbatch would get, to the byte but for the experiment's number."""
    if isinstance(_built(executor), run.LocalExecutor):
        return shlex.join(task.to_command(with_entrypoint=True)) + "\n"
    with run.Experiment(_title(name), **_QUIET) as experiment:
        job = _add(experiment, name, task, executor)
        try:
            experiment.dryrun(log=False, delete_exp_dir=False)
            return script_of(job).read_text(encoding="utf-8")
        finally:
            shutil.rmtree(job.executor.experiment_dir)


def start(name: str, task: run.Script, executor: Any, *, wait: bool) -> int:
    """Runs `task`. Returns 0 once it is submitted or, with `wait`, has ended well, else 1.

    Raises LaunchError when sbatch refuses it, or when `wait` is to wait for a job where SLURM keeps no accounts.
    """
    with run.Experiment(_title(name), **_QUIET, enable_goodbye_message=False, skip_status_at_exit=True) as experiment:
        job = _add(experiment, name, task, executor)
        if wait:
            _check_accounting(job.executor)
        try:
            experiment.run(detach=not wait, tail_logs=wait)
        except UnexpectedExit as error:
            raise LaunchError(f"{error.result.command}: {_in_a_line(error.result.stderr)}") from error
        if isinstance(job.executor, run.LocalExecutor):
            print(f"NeMo-Run experiment {job.executor.experiment_id}, in {job.executor.experiment_dir}", flush=True)
        else:
            print(f"submitted job {parse_app_handle(job.handle)[2]} as {script_of(job)}", flush=True)
    if wait and job.state != AppState.SUCCEEDED:
        print(f"the job ended as {job.state.name}", flush=True)
        return 1
    return 0


def _check_accounting(executor: Any) -> None:
    """Raises LaunchError where sacct does not work: NeMo-Run asks nothing else, and cancels the job after a while of silence."""
    if isinstance(executor, run.SlurmExecutor):
        asked = executor.tunnel.run("sacct --allocations --noheader", warn=True)
        if not asked.ok:
            raise LaunchError(f"waiting needs SLURM's accounting, and sacct says: {_in_a_line(asked.stderr)}; submit without waiting")


def _in_a_line(text: str) -> str:
    return "; ".join(line.strip() for line in text.splitlines() if line.strip())


def script_of(job: Any) -> Path:
    """Path of NeMo-Run's script of a job for SLURM."""
    return Path(job.executor.experiment_dir) / f"{job.executor.job_name}_sbatch.sh"


def start_in_context(context: run.cli.RunContext, name: str, words: Sequence[str]) -> None:
    """Runs, or shows, what NeMo-Run's command line was asked for. Ends the program with 1 when the job fails."""
    executor = _built(context.executor or local())
    task = run_here(words) if isinstance(executor, run.LocalExecutor) else run_launcher(executor, words)
    if context.dryrun:
        print(shown(name, task, executor), end="")
    elif start(name, task, executor, wait=not context.detach):
        sys.exit(1)


def _built(executor: Any) -> Any:
    if isinstance(executor, list):
        return [_built(each) for each in executor]
    return fiddle.build(executor) if isinstance(executor, fiddle.Config) else executor


def _title(name: str) -> str:
    """A run's name as one of folders, shell scripts and SLURM jobs: NeMo-Run writes it into them unquoted."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)


def _add(experiment: Any, name: str, task: run.Script, executor: Any) -> Any:
    """Adds the task, to a heterogeneous job once for each component, as NeMo-Run wants it; returns the job."""
    title = _title(name).replace(".", "_")  # what follows the last dot of a job's name is its role
    tasks = [task] * len(executor) if isinstance(executor, list) else task
    experiment.add(tasks, executor=_built(executor), name=title)
    return experiment.jobs[0]
