"""A machine's GPUs, the libraries that drive them, and what keeps a run from using them."""

import os
from collections.abc import Sequence

import torch

from megatron_entropic.platform import unseen_gpus
from megatron_entropic.system.devices import SLICED, cpu_is_asked_for
from megatron_entropic.system.gpus import GPU, GPUQueryError, find_gpus

_BUSY_MIB = 2048
"""GPU memory in use above which another process must be on the GPU: an idle one holds some hundred MiB."""


def inspect_gpus() -> tuple[list[GPU], list[str]]:
    """The GPUs of this machine, and a line for each thing that keeps a run from training on them; none where the CPU is asked for."""
    unseen = unseen_gpus()
    try:
        gpus = find_gpus()
    except GPUQueryError as error:
        gpus, unseen = [], unseen or str(error)
    if cpu_is_asked_for(os.environ):
        return gpus, []
    problems = [unseen] if unseen else []
    for number, gpu in enumerate(gpus):
        if gpu.sliced:
            problems.append(f"GPU {number} ({gpu.name}) shows itself as {SLICED}")
        if gpu.uncorrected:
            problems.append(f"GPU {number} has {gpu.uncorrected} uncorrected memory errors")
    return gpus, problems


def busy_gpus(gpus: Sequence[GPU]) -> list[str]:
    """A line for each GPU on which another process must be, where a run is to have them to itself."""
    if cpu_is_asked_for(os.environ):
        return []
    busy = [(number, gpu.used) for number, gpu in enumerate(gpus) if gpu.used > _BUSY_MIB]
    return [f"GPU {number} is in use already: {used} MiB are taken" for number, used in busy]


def libraries() -> dict[str, str | None]:
    """Versions of CUDA, cuDNN and NCCL that torch brings; None for each that it is built without."""
    cudnn = torch.backends.cudnn.version() if torch.version.cuda else None  # type: ignore[no-untyped-call]
    return {"CUDA": torch.version.cuda, "cuDNN": _cudnn(cudnn) if cudnn else None, "NCCL": _nccl()}


def _cudnn(number: int) -> str:
    """9.10.2 for 91002, as cuDNN counts since its version 9."""
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


def _nccl() -> str | None:
    if torch.version.cuda is None or not torch.distributed.is_nccl_available():
        return None
    return ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
