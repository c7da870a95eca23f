"""The job's SLURM allocation, read from its environment variables."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass


class ClusterError(Exception):
    """The job cannot continue; the message, one line, names what is wrong and what to change."""


@dataclass(frozen=True)
class Group:
    """Nodes of one kind: the whole job, or one component of a heterogeneous job (`het_group` is then its number)."""

    nodes: tuple[str, ...]
    cpus_per_node: int
    gpus_per_node: int
    """0 where there are none, or where SLURM does not say."""
    het_group: int | None = None


@dataclass(frozen=True)
class Allocation:
    """A job's nodes, and which start of the job this is (0, then 1 more after every requeue)."""

    job_id: str
    start: int
    task_id: int | None
    """Its number in a job array."""
    groups: tuple[Group, ...]

    @property
    def nodes(self) -> tuple[str, ...]:
        return tuple(node for group in self.groups for node in group.nodes)


def read_allocation(environ: Mapping[str, str]) -> Allocation:
    """The allocation of the batch job this process belongs to. Raises ClusterError outside one."""
    if "SLURM_JOB_ID" not in environ or "SLURM_JOB_NODELIST" not in environ:
        raise ClusterError("this is no SLURM job: submit slurm/train.sbatch with sbatch, or call `python -m slurm.submit`")
    het_size = int(environ.get("SLURM_HET_SIZE", "0"))
    groups = tuple(_group(environ, number) for number in range(het_size)) if het_size else (_group(environ, None),)
    task = environ.get("SLURM_ARRAY_TASK_ID")
    return Allocation(
        job_id=environ["SLURM_JOB_ID"],
        start=int(environ.get("SLURM_RESTART_COUNT") or "0"),
        task_id=int(task) if task else None,
        groups=groups,
    )


def _group(environ: Mapping[str, str], number: int | None) -> Group:
    suffix = "" if number is None else f"_HET_GROUP_{number}"
    nodes = expand(environ[f"SLURM_JOB_NODELIST{suffix}"])
    return Group(
        nodes=nodes,
        cpus_per_node=min(counts(environ.get(f"SLURM_JOB_CPUS_PER_NODE{suffix}", "1"))),
        gpus_per_node=_gpus_per_node(environ, suffix, len(nodes), batch_host=not number),
        het_group=number,
    )


_SLICE = re.compile(r"(?:\b|_)\d+g\.\d+gb\b|\bMIG-")
"""A slice as a kind of GPU, such as 1g.10gb or a100_1g.10gb, or by its UUID."""


def _gpus_per_node(environ: Mapping[str, str], suffix: str, nodes: int, *, batch_host: bool) -> int:
    """GPUs of each node of a group, from whichever way they were asked for; 0 where nothing says. Raises ClusterError for slices.

    `batch_host`: this process's node is in the group, so what SLURM says of that counts.
    """
    words = [f"SLURM_{name}{suffix}" for name in ("GPUS_PER_NODE", "GPUS_PER_TASK", "TRES_PER_TASK", "GPUS")]
    here = ["SLURM_GPUS_ON_NODE", "CUDA_VISIBLE_DEVICES"] if batch_host else []
    for name in [*words, *here]:
        if _SLICE.search(environ.get(name, "")):
            raise ClusterError(
                f"{name}={environ[name]}: slices of GPUs (MIG), between which NCCL does not communicate: ask for whole GPUs"
            )
    of_node, of_task, of_any_task, of_job = (_gpus_in(environ.get(name, "")) for name in words)
    tasks = min(counts(environ.get(f"SLURM_TASKS_PER_NODE{suffix}", "1")))
    on_host = _gpus_in(environ.get("SLURM_GPUS_ON_NODE", "")) if batch_host else 0
    return of_node or (of_task or of_any_task) * tasks or on_host or of_job // nodes


def _gpus_in(text: str) -> int:
    """GPUs that SLURM's words name: `8`, `h100:8`, `h100:4,a100:4`, or `cpu=4,gres/gpu:h100=1` among other resources."""
    words = [word for word in text.split(",") if "=" not in word or "gpu" in word]
    return sum(int(number[1]) for word in words if (number := re.search(r"(?:^|[:=])(\d+)$", word)))


def counts(text: str) -> list[int]:
    """SLURM's per-node numbers: `8(x2),4` is 8, 8, 4."""
    numbers = []
    for number, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        numbers += [int(number)] * int(times or 1)
    return numbers


def expand(nodelist: str) -> tuple[str, ...]:
    """Node names of SLURM's compressed list, such as n[1-3], in the order in which tasks are dealt out."""
    return tuple(ask("scontrol", "show", "hostnames", nodelist).split())


def ask(*command: str) -> str:
    """Output of one of SLURM's commands. Raises ClusterError with its first line of complaint."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ClusterError(f"{' '.join(command)}: {error}") from error
    if done.returncode:
        raise ClusterError(f"{' '.join(command)}: {done.stderr.strip().splitlines()[0] if done.stderr.strip() else done.returncode}")
    return done.stdout
