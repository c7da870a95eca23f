"""Assignment of a node's GPUs: training ranks the first ones, in order of their local rank, rollout servers those after them.

Pure: computed from what the environment says, so that ranks and servers, which are different processes, agree without asking.
"""

import os
from collections.abc import Mapping, MutableMapping

from megatron_entropic.errors import ReportedError

VISIBLE = "CUDA_VISIBLE_DEVICES"
_NO_DEVICE = ("", "-1", "none", "nodevfiles")
_RANKS = "LOCAL_WORLD_SIZE"
_SHOW_ALL = "an srun without --gpus-per-task, --ntasks-per-gpu and --gpu-bind shows all of the job's GPUs to every task"


class PlacementError(ReportedError, RuntimeError):
    """Ranks and servers do not fit on this node's GPUs; the message says what was found and what to change."""


def visible_devices(listed: str | None, count: int) -> list[str]:
    """The GPUs a process may use, as CUDA numbers or UUIDs: CUDA_VISIBLE_DEVICES (`listed`), of which torch sees `count`.

    As CUDA reads it, the list ends before the first entry that names no device, such as -1 or the 9th of 8. Raises
    PlacementError for slices of GPUs (MIG) and for a GPU that is listed twice.
    """
    if listed is None:
        return [str(device) for device in range(count)]
    devices: list[str] = []
    for entry in (word.strip() for word in listed.split(",")):
        if entry.startswith("MIG-"):
            raise PlacementError(f"{VISIBLE}={listed}: {entry} is {SLICED}")
        if not entry or not (entry.isdigit() or entry.startswith("GPU-")):
            break
        if entry in devices:
            raise PlacementError(f"{VISIBLE}={listed}: {entry} is listed twice")
        devices.append(entry)
    return devices[:count]


SLICED = "a slice of a GPU (MIG); NCCL does not communicate between slices, and a process sees only one: ask for whole GPUs"
"""The end of a sentence that refuses one."""


def refuse_slice(name: str) -> None:
    """Raises PlacementError for a device whose name, such as "NVIDIA A100-SXM4-40GB MIG 1g.5gb", is that of a slice."""
    if "MIG" in name.split():
        raise PlacementError(f"{name} is {SLICED}")


def cpu_is_asked_for(environ: Mapping[str, str]) -> bool:
    """Whether CUDA_VISIBLE_DEVICES is set to no device: empty, -1, or SLURM's word for a job without GPUs; not where it is misspelt."""
    first = environ.get(VISIBLE, "0").partition(",")[0].strip()
    return first.lower() in _NO_DEVICE


def ask_for_cpu(environ: MutableMapping[str, str] = os.environ) -> None:
    """Hides the GPUs from this process, if torch has not looked for them yet, and from those that it starts."""
    environ[VISIBLE] = ""


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


def rank_device(local_rank: int, seen: int, environ: Mapping[str, str]) -> int:
    """Number, among the `seen` GPUs of this process, of the one that a training rank takes for itself.

    It is that of its local rank, or 0 under an srun that shows each task one GPU of its own. Raises PlacementError where there
    is none left.
    """
    if local_rank < seen:
        return local_rank
    if seen == 1 and environ.get("SLURM_LOCALID") == str(local_rank) and _each_task_has_its_own(environ):
        return 0
    listed = f" ({VISIBLE}={environ[VISIBLE]})" if VISIBLE in environ else ""
    hint = f"; {_SHOW_ALL}" if "SLURM_LOCALID" in environ else ""
    raise PlacementError(
        f"the training rank with LOCAL_RANK={local_rank} has no GPU of its own: this process sees {seen}{listed}, and ranks of a node "
        f"take one each; make parallel.* smaller, or use more nodes or GPUs{hint}"
    )


def _each_task_has_its_own(environ: Mapping[str, str]) -> bool:
    """Whether SLURM gave the tasks of this step different GPUs, as far as its variables tell."""
    if environ.get("SLURM_NTASKS_PER_GPU", "1") != "1" or environ.get("SLURM_GPU_BIND") == "none":
        return False
    per_task = "SLURM_GPUS_PER_TASK" in environ or "gpu" in environ.get("SLURM_TRES_PER_TASK", "")
    bound = any(name in environ for name in ("SLURM_GPU_BIND", "SLURM_NTASKS_PER_GPU"))
    return per_task or bound or int(environ.get("SLURM_GPUS_ON_NODE") or "0") > 1


def server_devices(devices: list[str], training_ranks: int, server: int, tensor: int, *, shared: bool = False) -> list[str]:
    """The `tensor` GPUs of server number `server` of this node: after those of the ranks, or `shared` with them from the first on.

    Raises PlacementError when there are too few.
    """
    first = (0 if shared else training_ranks) + server * tensor
    mine = devices[first : first + tensor]
    if len(mine) == tensor:
        return mine
    wanted = f"GPU {first}" if tensor == 1 else f"GPUs {first} to {first + tensor - 1}"
    there = f"rollout server {server} needs {wanted} of this node, counted from 0; it shows {len(devices)} to this process"
    hint = f"; {_SHOW_ALL}" if len(devices) == 1 else ""
    if shared:
        raise PlacementError(
            f"{there}, and rollout.share_gpu=true has servers use those of the ranks, but no two servers one: lower rollout.servers "
            f"or rollout.tensor{hint}"
        )
    ranks = f"{training_ranks} training rank{'s' * (training_ranks != 1)}, which take{'s' * (training_ranks == 1)} the first ones"
    share = ", or set rollout.share_gpu=true" if 0 < (server + 1) * tensor <= len(devices) and training_ranks else ""
    raise PlacementError(
        f"{there} and has {ranks}: lower rollout.servers, rollout.tensor or the ranks per node, serve on other nodes{share}{hint}"
    )
