"""The machine's devices, and the patches that make Megatron-Core run without a GPU. Importing this quiets Megatron-Core's warnings."""

import warnings

import torch

from megatron_entropic.platform.cpu import applied_patches, install
from megatron_entropic.platform.determinism import make_deterministic

# Said on every import of Megatron-Core without them; `megatron-entropic doctor` reports what is installed instead.
warnings.filterwarnings("ignore", message=".*(Transformer Engine and Apex are|Apex is) not installed", category=UserWarning)


def accelerated() -> bool:
    """Whether kernels can be fused and compiled for a GPU."""
    return torch.cuda.is_available()


def compute_capability() -> tuple[int, int] | None:
    """Generation of the current GPU, as (9, 0) for an H100; None where there is none."""
    return torch.cuda.get_device_capability() if accelerated() else None


def communication_backend() -> str:
    """The torch.distributed backend for model-parallel groups: "nccl" or "gloo"."""
    return "nccl" if accelerated() else "gloo"


def select_device(local_rank: int) -> torch.device:
    """Makes device number `local_rank` of this machine the current one and returns it; the CPU where there is no GPU."""
    if not accelerated():
        return torch.device("cpu")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


__all__ = [
    "accelerated",
    "applied_patches",
    "communication_backend",
    "compute_capability",
    "install",
    "make_deterministic",
    "select_device",
]
