"""Assignment of a node's GPUs: training ranks the first ones, in order of their local rank, rollout servers those after them.

Pure: computed from what the environment says, so that ranks and servers, which are different processes, agree without asking.
"""

import os
from collections.abc import Mapping, MutableMapping

from megatron_entropic.errors import ReportedError

_RANKS = "LOCAL_WORLD_SIZE"


class PlacementError(ReportedError, RuntimeError):
    """Ranks and servers do not fit on this node's GPUs; the message says what was found and what to change."""


def visible_devices(listed: str | None, count: int) -> list[str]:
    """The GPUs a process may use, as CUDA numbers or UUIDs: CUDA_VISIBLE_DEVICES (`listed`), or all `count` when it is not set.

    As CUDA reads it, the list ends before the first entry that names no device, such as -1. Raises PlacementError for slices
    of GPUs (MIG), between which NCCL does not communicate, and for a GPU that is listed twice.
    """
    if listed is None:
        return [str(device) for device in range(count)]
    devices: list[str] = []
    for entry in (word.strip() for word in listed.split(",")):
        if entry.startswith("MIG-"):
            raise PlacementError(
                f"CUDA_VISIBLE_DEVICES={listed}: {entry} is a slice of a GPU (MIG); NCCL does not communicate between slices, and a "
                "process sees only one: ask for whole GPUs"
            )
        if not entry or not (entry.isdigit() or entry.startswith("GPU-")):
            break
        if entry in devices:
            raise PlacementError(f"CUDA_VISIBLE_DEVICES={listed}: {entry} is listed twice")
        devices.append(entry)
    return devices


def training_ranks_here(environ: Mapping[str, str]) -> int:
    """Number of training ranks that share this node's GPUs. Raises PlacementError where nothing says so."""
    if environ.get(_RANKS):
        return int(environ[_RANKS])
    if int(environ.get("WORLD_SIZE") or "1") == 1:
        return 1
    raise PlacementError(
        f"{_RANKS} is not set beside WORLD_SIZE={environ['WORLD_SIZE']}: rollout servers must know how many ranks use this node's "
        "GPUs; start the ranks by `megatron-entropic train`, torchrun or srun, or set it"
    )


def without_training_ranks(environ: MutableMapping[str, str] = os.environ) -> None:
    """Leaves all GPUs of this node to the servers that this process starts from now on: nothing trains here."""
    environ[_RANKS] = "0"


def ranks_per_node(tasks_per_node: str, node: int) -> int:
    """Tasks on node number `node` of a SLURM step, from SLURM_STEP_TASKS_PER_NODE, such as "4(x2),3". Raises ValueError."""
    counts: list[int] = []
    for group in tasks_per_node.split(","):
        tasks, _, repeated = group.partition("(x")
        counts += [int(tasks)] * int(repeated.removesuffix(")") or "1")
    if not 0 <= node < len(counts):
        raise ValueError(f"SLURM_STEP_TASKS_PER_NODE={tasks_per_node} has no node {node}")
    return counts[node]


def server_devices(devices: list[str], training_ranks: int, server: int, tensor: int) -> list[str]:
    """The `tensor` GPUs of server number `server` of this node. Raises PlacementError when there are too few."""
    first = training_ranks + server * tensor
    mine = devices[first : first + tensor]
    if len(mine) < tensor:
        wanted = f"GPU {first}" if tensor == 1 else f"GPUs {first} to {first + tensor - 1}"
        ranks = f"{training_ranks} training rank{'s' * (training_ranks != 1)}, which take the first ones"
        hint = "; a SLURM step with --gpu-bind=none shows all GPUs to every task" if len(devices) == 1 else ""
        raise PlacementError(
            f"rollout server {server} needs {wanted} of this node, counted from 0; it shows {len(devices)} to this process and has "
            f"{ranks}: lower rollout.servers, rollout.tensor or the ranks per node, or serve on other nodes{hint}"
        )
    return mine
