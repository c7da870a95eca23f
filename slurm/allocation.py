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
    gpus = environ.get(f"SLURM_GPUS_PER_NODE{suffix}", "")
    if not gpus and not number:  # what the batch host sees; says nothing about other components
        gpus = environ.get("SLURM_GPUS_ON_NODE", "")
    return Group(
        nodes=expand(environ[f"SLURM_JOB_NODELIST{suffix}"]),
        cpus_per_node=min(counts(environ.get(f"SLURM_JOB_CPUS_PER_NODE{suffix}", "1"))),
        gpus_per_node=sum(int(count) for count in re.findall(r"(?:^|[:,])(\d+)(?=,|$)", gpus)),
        het_group=number,
    )


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
