"""The device that a process computes on, and refusals of a machine whose GPUs it would not use without saying so."""

import os

import torch

from megatron_entropic.system.devices import VISIBLE, PlacementError, cpu_is_asked_for, rank_device, refuse_slice
from megatron_entropic.system.gpus import GPUQueryError, find_gpus


def accelerated() -> bool:
    """Whether kernels can be fused and compiled for a GPU."""
    return torch.cuda.is_available()


def compute_capability() -> tuple[int, int] | None:
    """Generation of the current GPU, as (9, 0) for an H100; None where there is none."""
    return torch.cuda.get_device_capability() if accelerated() else None


def device_name() -> str | None:
    """The current GPU as its driver names it; None where there is none."""
    return torch.cuda.get_device_name() if accelerated() else None


def memory_size() -> int | None:
    """Bytes of the current GPU's memory; None where there is none."""
    return torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory if accelerated() else None


def communication_backend() -> str:
    """The torch.distributed backend for model-parallel groups: "nccl" or "gloo"."""
    return "nccl" if accelerated() else "gloo"


def select_device(local_rank: int) -> torch.device:
    """Makes the GPU of local rank `local_rank` the current device and returns it; the CPU where there is no GPU.

    Raises PlacementError for a GPU that is another rank's, a slice of one, or unusable.
    """
    if not accelerated():
        return torch.device("cpu")
    number = rank_device(local_rank, torch.cuda.device_count(), os.environ)
    try:
        name = torch.cuda.get_device_name(number)
        torch.cuda.set_device(number)
    except (RuntimeError, AssertionError) as error:
        raise PlacementError(f"LOCAL_RANK={local_rank} cannot use GPU {number}: {first_line(error)}") from error
    refuse_slice(name)
    return torch.device("cuda", number)


def check_gpus_are_seen() -> None:
    """Raises PlacementError where nvidia-smi lists GPUs, torch sees none, and nobody asked for the CPU."""
    if problem := unseen_gpus():
        raise PlacementError(problem)


def unseen_gpus() -> str | None:
    """The reason why GPUs that this machine has would be left idle, in one line; None where they are used or there are none."""
    if accelerated() or cpu_is_asked_for(os.environ):
        return None
    anyway = "parallel.device=cpu (or CUDA_VISIBLE_DEVICES= ) computes on the CPU all the same"
    try:
        gpus = find_gpus()
    except GPUQueryError as error:
        return f"torch sees no GPU, and {error}: repair the driver; {anyway}"
    if not gpus:
        return None
    there = f"nvidia-smi lists {len(gpus)} GPU{'s' * (len(gpus) != 1)} ({gpus[0].name}, driver {gpus[0].driver})"
    return f"{there}, but torch {torch.__version__} sees none: {_why_none()}; {anyway}"


def _why_none() -> str:
    if torch.version.cuda is None:
        return "it is a build for CPUs; install the one for CUDA (`make env-gpu`)"
    listed = f" ({VISIBLE}={os.environ[VISIBLE]})" if VISIBLE in os.environ else ""
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        return f"it is a build for CUDA {torch.version.cuda}, and CUDA says: {first_line(error)}{listed}"
    return f"it is a build for CUDA {torch.version.cuda}, which finds no device{listed}"


def device_failure(error: RuntimeError) -> str | None:
    """One line about an error of this process's GPU: CUDA's, or memory that ran out; None for any other error."""
    if isinstance(error, torch.OutOfMemoryError):
        return f"{first_line(error)} (a smaller batch.max_tokens_per_micro_batch or model.recompute needs less)"
    return f"the GPU failed: {first_line(error)}" if isinstance(error, torch.AcceleratorError) else None


def first_line(error: BaseException) -> str:
    """The first line of an error's message: CUDA's have advice for programmers after it."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
