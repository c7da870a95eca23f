"""A machine's GPUs, the libraries that drive them, and what keeps a run from using them."""

import torch

from megatron_entropic.platform import unseen_gpus
from megatron_entropic.system.devices import SLICED
from megatron_entropic.system.gpus import GPU, GPUQueryError, find_gpus


def inspect_gpus() -> tuple[list[GPU], list[str]]:
    """The GPUs of this machine, and a line for each thing that keeps a run from training on them."""
    unseen = unseen_gpus()
    try:
        gpus = find_gpus()
    except GPUQueryError as error:
        return [], [unseen or str(error)]
    sliced = [f"GPU {number} ({gpu.name}) shows itself as {SLICED}" for number, gpu in enumerate(gpus) if gpu.sliced]
    return gpus, [*([unseen] if unseen else []), *sliced]


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
