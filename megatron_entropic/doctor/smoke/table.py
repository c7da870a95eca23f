"""The parts of the smoke test, in the order in which they run: cheap and telling ones first."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_entropic.errors import ReportedError

DEFAULT_JSON = Path("gpu_smoke.json")
"""In the current folder; the logs are in gpu_smoke.logs beside it."""

_HERE = "megatron_entropic.doctor.smoke"
_MEGATRON = ("megatron.core", "transformers")


class UnknownPartError(ReportedError, ValueError):
    """--only names a part that there is not."""


@dataclass(frozen=True)
class SmokePart:
    """One part of the smoke test.

    `run` is `module:function`, called with the part's Findings in a process of its own, which is ended after `limit_s` seconds with
    all that it started. `needs`: modules without which the part is not tried.
    """

    name: str
    shows: str
    limit_s: float
    run: str
    needs: tuple[str, ...] = ()


PARTS: tuple[SmokePart, ...] = (
    SmokePart("versions", "what is installed, and which GPUs there are", 90, f"{_HERE}.who_is_who:run"),
    SmokePart(
        "kernels",
        "token statistics and output layer: errors against float64, speed beside a copy, a GEMM, plain torch, Liger and verl",
        240,
        f"{_HERE}.kernels:run",
        ("torch", "numpy"),
    ),
    SmokePart(
        "layers",
        "Transformer Engine's layers against Megatron-Core's local ones against transformers",
        240,
        f"{_HERE}.layers:run",
        ("torch", *_MEGATRON),
    ),
    SmokePart(
        "packings",
        "updates on 50 different packings: nothing is compiled anew, memory does not grow",
        180,
        f"{_HERE}.packings:run",
        ("torch", *_MEGATRON),
    ),
    SmokePart(
        "resume",
        "three updates, a checkpoint, and a new process that goes on as if nothing had been",
        180,
        f"{_HERE}.resuming:run",
        ("torch", *_MEGATRON),
    ),
    SmokePart(
        "server",
        "a vLLM server beside the trainer: weights over gloo, their checksum, the gap of the log-probs",
        420,
        f"{_HERE}.serving:run",
        ("torch", *_MEGATRON, "vllm"),
    ),
    SmokePart(
        "two-gpus",
        "tensor, sequence and pipeline parallelism against one rank; NCCL and three steps of `train` on two GPUs",
        420,
        f"{_HERE}.two_ranks:run",
        ("torch", *_MEGATRON),
    ),
)


def chosen_parts(only: Sequence[str] | None, parts: Sequence[SmokePart] = PARTS) -> list[SmokePart]:
    """The parts named, in the table's order; all of them when `only` is None. Raises UnknownPartError."""
    known = [part.name for part in parts]
    if only is not None and (unknown := [name or "''" for name in only if name not in known]):
        raise UnknownPartError(f"--only: no part is called {', '.join(unknown)}; the parts are {', '.join(known)}")
    return [part for part in parts if only is None or part.name in only]
