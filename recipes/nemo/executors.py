"""NeMo-Run's executors for our jobs. `local()`, `slurm()` and `slurm_het()` are registered as factories of executors.

On SLURM the job is slurm/train.sbatch itself: `run_launcher` makes NeMo-Run's script end in it. So ranks, servers, preflight,
signals and requeueing are the launcher's (`python -m slurm.launch --help`), as for a job submitted by sbatch.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import nemo_run as run
from nemo_run.config import RUNDIR_NAME
from nemo_run.core.execution.slurm import SlurmJobDetails

from megatron_entropic.errors import ReportedError

ROOT = Path(__file__).resolve().parent.parent.parent
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


def local(env_vars: Mapping[str, str] | None = None) -> run.LocalExecutor:
    """Runs on this machine."""
    return run.LocalExecutor(env_vars=dict(env_vars or {}))


def slurm(tunnel: Any = None, **flags: Any) -> run.SlurmExecutor:
    """One allocation, split by nodes. `flags` are sbatch's, with `_` for `-`: account, partition, nodes, gpus_per_node, time ...

    `tunnel` is the way to the cluster: none where sbatch is, else a run.SSHTunnel.
    """
    known = {field.name for field in fields(run.SlurmExecutor) if field.init}
    flags = {"nodes": NODES, **_JOB, **flags}
    return run.SlurmExecutor(
        # Every field that has another default than "SLURM decides".
        **{"account": None, "time": None, **{name: value for name, value in flags.items() if name in known}},
        additional_parameters={**_REQUEUE, **{name: value for name, value in flags.items() if name not in known}},
        job_name_prefix="entropic.",
        tunnel=tunnel or run.LocalTunnel(job_dir=""),
        packager=run.Packager(),
        job_details=JobLog(),
        poll_estimated_start_time=False,
    )


def slurm_het(tunnel: Any = None, *, fleet_nodes: int = 1, fleet_gpus_per_node: Any = None, **flags: Any) -> list[run.SlurmExecutor]:
    """A heterogeneous job: the trainer's executor and the fleet's. NeMo-Run knows their nodes and GPUs; other flags hold for both."""
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


def run_launcher(executor: run.SlurmExecutor, words: Sequence[str], *, root: Path = ROOT, het: bool = False) -> run.Script:
    """The task that trains `words` (recipe, overrides, options of slurm.launch) with the checkout `root` on the cluster.

    The executor's script is made to hand over to it. Raises LaunchError when the script could not say what it should.
    """
    task = run.Script(path=str(root / "slurm" / ("train_het.sbatch" if het else "train.sbatch")), args=[shlex.quote(word) for word in words])
    command = " ".join([task.entrypoint, shlex.quote(task.path), *task.args])
    if f"/{RUNDIR_NAME}" in command:
        raise LaunchError(f"{command}: NeMo-Run replaces every '/{RUNDIR_NAME}' in the job's script; rename that folder")
    executor.setup_lines = _HAND_OVER.format(root=shlex.quote(str(root)), command=command)
    return task


def run_here(words: Sequence[str], python: str) -> run.Script:
    """The task that trains `words` (as of `megatron-entropic train`) with the environment of `python`."""
    return run.Script(path="megatron_entropic.cli", m=True, entrypoint=python, args=["train", *words])
