"""The same bits from the same work, on GPUs too: at some cost in speed, since the fastest kernels add up in any order."""

import os

import torch

ENVIRONMENT = {
    "NVTE_ALLOW_NONDETERMINISTIC_ALGO": ("0", "backward passes of Transformer Engine's attention"),
    "CUBLAS_WORKSPACE_CONFIG": (":4096:8", "cuBLAS: products that are split over streams"),
    "NCCL_ALGO": ("Ring", "NCCL: the order of sums over ranks, which it would choose by the size of a message"),
}
"""Environment variables: their value, and what they make deterministic."""
_REQUIRED = "NVTE_ALLOW_NONDETERMINISTIC_ALGO"
"""The others may be what the user has set: there are more values that do."""


def make_deterministic() -> None:
    """For this process, before its first work on a GPU and its first collective. Safe to call twice."""
    for name, (value, _) in ENVIRONMENT.items():
        if name == _REQUIRED:
            os.environ[name] = value
        else:
            os.environ.setdefault(name, value)
    torch.use_deterministic_algorithms(True)
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010 - undeclared; nobody reads it
