"""NeMo-Run's executors for our jobs. `local()`, `slurm()` and `slurm_het()` are registered as factories of executors.

On SLURM the job is slurm/train.sbatch itself: `run_launcher` makes NeMo-Run's script end in it. So ranks, servers, preflight,
signals and requeueing are the launcher's (`python -m slurm.launch --help`), as for a job submitted by sbatch.
"""

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import nemo_run as run
from nemo_run.config import RUNDIR_NAME, get_nemorun_home
from nemo_run.core.execution.slurm import SlurmJobDetails

from megatron_entropic.errors import ReportedError
from recipes.nemo.home import DEFAULT, ROOT

NODES = 2
"""Of a job that does not say, as in slurm/train.sbatch."""
_JOB: dict[str, Any] = {"signal": "B:USR1@300", "exclusive": True, "open_mode": "append"}
_REQUEUE = {"requeue": True}
"""As slurm/train.sbatch asks for: five minutes to save, then the same job again, which appends to its output and resumes."""

_HAND_OVER = """
# NeMo-Run starts its commands with srun. This one is the launcher: it runs once, here, on the first node, calls srun itself, gets
# SLURM's signals and requeues the job. It takes this script's place, and srun below is not reached.
export ENTROPIC_ROOT={root}
exec {command}
"""


class LaunchError(ReportedError):
    """The job cannot be submitted like this; the message says what to change."""


@dataclass(kw_only=True)
class JobLog(SlurmJobDetails):  # type: ignore[misc]  # nemo_run is not installed where types are checked
    """The job's output in the file in which NeMo-Run (`nemo experiment logs`) looks for that of its srun."""

    @property
    def stdout(self) -> Path:
        return Path(str(self.folder)) / f"log-{self.job_name}_%j.out"


def local() -> run.Config[run.LocalExecutor]:
    """Runs on this machine, with this checkout."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return run.Config(run.LocalExecutor, env_vars={"PYTHONPATH": ":".join(paths)})


def slurm(tunnel: Any = None, **flags: Any) -> run.Config[run.SlurmExecutor]:
    """One allocation, split by nodes. `flags` are sbatch's, with `_` for `-`: account, partition, nodes, gpus_per_node, time ...

    `tunnel` is the way to the cluster: none where sbatch is, else a run.Config of run.SSHTunnel.
    """
    known = {field.name for field in fields(run.SlurmExecutor) if field.init}
    flags = {"account": None, "time": None, "nodes": NODES, **_JOB, **flags}
    return run.Config(
        run.SlurmExecutor,
        **{name: value for name, value in flags.items() if name in known},
        additional_parameters={**_REQUEUE, **{name: value for name, value in flags.items() if name not in known}},
        job_name_prefix="entropic.",
        tunnel=tunnel or run.Config(run.LocalTunnel, job_dir=""),
        packager=run.Config(run.Packager),
        job_details=run.Config(JobLog),
        poll_estimated_start_time=False,
    )


def slurm_het(
    tunnel: Any = None, *, fleet_nodes: int = 1, fleet_gpus_per_node: Any = None, **flags: Any
) -> list[run.Config[run.SlurmExecutor]]:
    """A heterogeneous job: the trainer's executor and the fleet's. NeMo-Run knows nodes and GPUs of each; other flags hold for both."""
    trainer = slurm(tunnel, **{"nodes": 1, **flags})
    fleet = slurm(tunnel, **{**flags, "nodes": fleet_nodes})
    gpus = trainer.gpus_per_node
    if gpus is None and fleet_gpus_per_node is not None:
        raise LaunchError("--fleet-gpus-per-node needs --gpus-per-node too: NeMo-Run asks for GPUs in both components or in none")
    fleet.gpus_per_node = gpus if fleet_gpus_per_node is None else fleet_gpus_per_node
    for executor in (trainer, fleet):
        executor.heterogeneous = True
        executor.wait_time_for_group_job = 0
        executor.monitor_group_job = False
    return [trainer, fleet]


def over_ssh(host: str, user: str, root: Path, *, port: int | None = None, identity: str | None = None) -> run.Config[run.SSHTunnel]:
    """The way to a cluster on which `root` is a checkout of this project; NeMo-Run's folder there is in it."""
    folder = root / DEFAULT.relative_to(ROOT) / "experiments"
    key = identity and str(Path(identity).expanduser())
    return run.Config(run.SSHTunnel, host=host, user=user, port=port, identity=key, job_dir=str(folder))


def run_launcher(executor: Any, words: Sequence[str], *, root: Path = ROOT, het: bool = False) -> run.Script:
    """The task that trains `words` (recipe, overrides, options of slurm.launch) with the checkout `root` on the cluster.

    The script of `executor`, a run.SlurmExecutor or the run.Config of one, is made to hand over to it. Raises LaunchError when that
    script could not say what it should.
    """
    script = root / "slurm" / ("train_het.sbatch" if het else "train.sbatch")
    task = run.Script(path=str(script), args=[shlex.quote(word) for word in words])
    command = " ".join([task.entrypoint, shlex.quote(task.path), *task.args])
    said = [command, get_nemorun_home(), executor.tunnel.job_dir, *map(str, executor.additional_parameters.values())]
    if swallowed := [text for text in said if f"/{RUNDIR_NAME}" in text]:
        raise LaunchError(f"{swallowed[0]}: NeMo-Run replaces every '/{RUNDIR_NAME}' in the job's script; use a folder of another name")
    executor.setup_lines = _HAND_OVER.format(root=shlex.quote(str(root)), command=command)
    return task


def run_here(words: Sequence[str], python: str | None = None) -> run.Script:
    """The task that trains `words` (as of `megatron-entropic train`) with the environment of `python`. Raises LaunchError."""
    made = ".venv-gpu" if (ROOT / ".venv-gpu" / ".installed").is_file() else ".venv"  # as in slurm/environment.sh
    python = python or os.environ.get("ENTROPIC_PYTHON") or str(ROOT / made / "bin" / "python")
    if not Path(python).is_file():
        raise LaunchError(f"{python}: no Python there to train with: run `make env` or `make env-gpu`, or name one by --python")
    return run.Script(path="megatron_entropic.cli", m=True, entrypoint=python, args=["train", *words])
