"""The machine's devices, and the patches that make Megatron-Core run without a GPU. Importing this quiets Megatron-Core's warnings."""

import warnings

from megatron_entropic.platform.cpu import applied_patches, install
from megatron_entropic.platform.determinism import make_deterministic
from megatron_entropic.platform.devices import (
    accelerated,
    check_gpus_are_seen,
    communication_backend,
    compute_capability,
    device_failure,
    device_name,
    first_line,
    memory_size,
    select_device,
    unseen_gpus,
)
from megatron_entropic.platform.marks import mark
from megatron_entropic.platform.megatron_imports import import_megatron

# Said on every import of Megatron-Core without them; `megatron-entropic doctor` reports what is installed instead.
warnings.filterwarnings("ignore", message=".*(Transformer Engine and Apex are|Apex is) not installed", category=UserWarning)

__all__ = [
    "accelerated",
    "applied_patches",
    "check_gpus_are_seen",
    "communication_backend",
    "compute_capability",
    "device_failure",
    "device_name",
    "first_line",
    "import_megatron",
    "install",
    "make_deterministic",
    "mark",
    "memory_size",
    "select_device",
    "unseen_gpus",
]
