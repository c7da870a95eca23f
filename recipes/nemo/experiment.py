"""From a task and its executor to a NeMo-Run experiment: shown as what would be submitted, or run."""

import shlex
import shutil
from pathlib import Path
from typing import Any

import nemo_run as run
from invoke.exceptions import UnexpectedExit
from torchx.specs import AppState
from torchx.specs.api import parse_app_handle

from recipes.nemo.executors import LaunchError


def shown(name: str, task: run.Script, executor: Any) -> str:
    """The command that would run on this machine, or the script that sbatch would get, to the byte but for the experiment's number."""
    if isinstance(executor, run.LocalExecutor):
        return shlex.join(task.to_command(with_entrypoint=True)) + "\n"
    with run.Experiment(name, clean_mode=True, log_level="WARNING") as experiment:
        job = _add(experiment, name, task, executor)
        try:
            experiment.dryrun(log=False, delete_exp_dir=False)
            return script_of(job).read_text(encoding="utf-8")
        finally:
            shutil.rmtree(job.executor.experiment_dir)


def start(name: str, task: run.Script, executor: Any, *, wait: bool) -> int:
    """Runs `task`. Returns 0 once it is submitted or, with `wait`, has ended well, else 1. Raises LaunchError when sbatch refuses it.

    The state of a job on SLURM comes from its accounting (sacct); without that, `wait` cannot be told how a job ended.
    """
    with run.Experiment(name, clean_mode=True, log_level="WARNING", enable_goodbye_message=False, skip_status_at_exit=True) as experiment:
        job = _add(experiment, name, task, executor)
        try:
            experiment.run(detach=not wait, tail_logs=wait)
        except UnexpectedExit as error:
            raise LaunchError(f"{error.result.command}: {(error.result.stderr or error.result.stdout).strip()}") from error
        if isinstance(executor, run.LocalExecutor):
            print(f"NeMo-Run experiment {job.executor.experiment_id}, in {job.executor.experiment_dir}", flush=True)
        else:
            print(f"submitted job {parse_app_handle(job.handle)[2]} as {script_of(job)}", flush=True)
    if wait and job.state != AppState.SUCCEEDED:
        print(f"the job ended as {job.state.name}" + (": is sacct there?" if job.state == AppState.UNKNOWN else ""), flush=True)
        return 1
    return 0


def script_of(job: Any) -> Path:
    """Where NeMo-Run keeps the script of a job for SLURM."""
    return Path(job.executor.experiment_dir) / f"{job.executor.job_name}_sbatch.sh"


def _add(experiment: Any, name: str, task: run.Script, executor: Any) -> Any:
    """Adds the task, to a heterogeneous job once for each component, as NeMo-Run wants it; returns the job."""
    title = name.replace(".", "_")  # what follows the last dot of a job's name is its role
    experiment.add([task] * len(executor) if isinstance(executor, list) else task, executor=executor, name=title)
    return experiment.jobs[0]
