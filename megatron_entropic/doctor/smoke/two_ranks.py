"""Part `two-gpus`: layouts of two ranks against one another, and a run on two GPUs whose weights go over NCCL.

Without GPUs the two ranks meet over gloo; on a single GPU nothing of this can be tried, because NCCL takes a GPU once.

Shapes: N response tokens of the batch.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from megatron_entropic.config import ParallelConfig
from megatron_entropic.doctor.smoke.findings import Findings
from megatron_entropic.doctor.smoke.short_run import train_with_server

_TIMEOUT_S = 120.0
LAYOUTS = {
    "data 2": ParallelConfig(data=2, timeout_s=_TIMEOUT_S),
    "tensor 2, sequence parallel": ParallelConfig(tensor=2, sequence=True, timeout_s=_TIMEOUT_S),
    "pipeline 2": ParallelConfig(pipeline=2, timeout_s=_TIMEOUT_S),
}
"""The first has the whole model on each rank: the others are compared with it."""
_LIMITS = {"float32": 2e-4, "bfloat16": 0.1}
"""Mean difference of the log-probs of two layouts, nats, and relative difference of their gradient norms."""


def run(findings: Findings) -> None:
    """The layouts first; then three steps of `train`, where there are two GPUs."""
    gpus = torch.cuda.device_count()
    if gpus == 1:
        findings.cannot("layouts of two ranks, NCCL, and `train` with a server of its own", "they need two GPUs; here is one")
        return
    compare_layouts(findings)
    if gpus:
        train_with_server(findings, "three steps of train, a server on the second GPU, weights over NCCL")
    else:
        findings.cannot("NCCL, and `train` with a server of its own", "they need two GPUs; here is none")


def compare_layouts(findings: Findings) -> None:
    """Log-probs and gradient norm of one batch in each layout, by one pair of processes."""
    folder = Path(tempfile.mkdtemp())
    findings.step(f"two ranks: {'; '.join(LAYOUTS)}")
    _run_ranks(folder)
    whole, *others = (_measured(folder / f"{number}.json") for number in range(len(LAYOUTS)))
    for name, found in zip(list(LAYOUTS)[1:], others, strict=True):
        apart_N = (found["log_probs_N"] - whole["log_probs_N"]).abs()
        grad_norm = abs(found["grad_norm"] / whole["grad_norm"] - 1)
        findings.found(
            f"{name}, against {next(iter(LAYOUTS))}",
            log_prob_mean=float(apart_N.mean()),
            log_prob_max=float(apart_N.max()),
            grad_norm=grad_norm,
        )
        limit = _LIMITS[found["dtype"]]
        findings.at_most(f"{name}: difference of the log-probs from the whole model's", float(apart_N.mean()), limit)
        findings.at_most(f"{name}: difference of the gradient norm from the whole model's, relative", grad_norm, limit)


def _run_ranks(folder: Path) -> None:
    """Two processes of layout_rank.py, which meet in `folder`. Raises RuntimeError for one that fails; the other is ended then."""
    command = [sys.executable, "-m", "megatron_entropic.doctor.smoke.layout_rank", str(folder)]
    ranks = [
        subprocess.Popen(
            command,
            env=os.environ
            | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"},
            stdin=subprocess.DEVNULL,
        )
        for rank in range(2)
    ]
    try:
        codes: list[int | None] = [None]
        while None in codes:
            time.sleep(0.1)
            codes = [process.poll() for process in ranks]
            for rank, code in enumerate(codes):
                if code:
                    raise RuntimeError(f"rank {rank} ended with exit code {code}")
    finally:
        for process in ranks:
            process.kill()
            process.wait()


def _measured(path: Path) -> dict[str, Any]:
    measured: dict[str, Any] = json.loads(path.read_bytes())
    return measured | {"log_probs_N": torch.tensor(measured["log_probs"])}
