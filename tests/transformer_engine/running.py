"""Calls functions in a process of their own in which Transformer Engine is installed, its compiled part stubbed.

`python -m tests.transformer_engine.running PACKAGES CALL` is that process: it reads (module, function, layout, arguments) from the
file CALL and leaves the results of all ranks in CALL.result, pickled both.
"""

import importlib
import os
import pickle
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_entropic.config import ParallelConfig

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "requirements" / "transformer_engine.lock"
FOLDER = ROOT / "build" / "transformer_engine"


def installed() -> Path:
    """The folder with the packages of LOCK, 56 MB, installed once; skips the test where the package index cannot be reached."""
    stamp = FOLDER / ".lock"
    if not stamp.exists() or stamp.read_text() != LOCK.read_text():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check", "--upgrade"]
        try:
            done = subprocess.run([*pip, "--target", FOLDER, "-r", LOCK], capture_output=True, text=True, timeout=400)
        except subprocess.TimeoutExpired:
            pytest.skip("Transformer Engine's Python could not be installed: the package index does not answer")
        if done.returncode:
            pytest.skip(f"Transformer Engine's Python could not be installed: {done.stderr.strip().splitlines()[-1]}")
        stamp.write_text(LOCK.read_text())
    return FOLDER


def with_transformer_engine(
    function: Callable[..., Any], *arguments: Any, layout: ParallelConfig = ParallelConfig(), timeout: float = 300.0
) -> list[Any]:
    """`function(parallel, *arguments)` on every rank of `layout`, where there is Transformer Engine and, seemingly, an H100.

    Returns the ranks' results.
    """
    packages = installed()
    with tempfile.TemporaryDirectory() as folder:
        call = Path(folder) / "call"
        call.write_bytes(pickle.dumps((function.__module__, function.__name__, layout, arguments)))
        done = subprocess.run(
            [sys.executable, "-m", "tests.transformer_engine.running", packages, call],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
        )
        assert done.returncode == 0, done.stdout.decode(errors="replace")[-6000:]
        return pickle.loads(call.with_suffix(".result").read_bytes())


def _believe_in_a_gpu() -> None:
    """What our code and Transformer Engine ask of CUDA is answered as on a machine with one H100; tensors stay on the CPU."""
    import torch

    properties = types.SimpleNamespace(major=9, minor=0, name="NVIDIA H100", multi_processor_count=132, total_memory=80 << 30)
    cuda: Any = torch.cuda
    cuda.is_available = lambda: True
    cuda.device_count = lambda: 1
    cuda.get_device_properties = lambda *_: properties
    cuda.get_device_capability = lambda *_: (properties.major, properties.minor)


def main() -> None:
    """The process that has Transformer Engine."""
    packages, call = map(Path, sys.argv[1:])
    module, function, layout, arguments = pickle.loads(call.read_bytes())
    from tests.transformer_engine import stub

    stub.install(packages)
    from tests.run_ranks import run_ranks

    call_it = getattr(importlib.import_module(module), function)
    results = run_ranks(_run_rank, layout.world_size, call_it, layout, arguments, timeout=300)
    call.with_suffix(".result").write_bytes(pickle.dumps(results))


def _run_rank(function: Callable[..., Any], layout: ParallelConfig, arguments: tuple[Any, ...]) -> Any:
    from megatron_entropic.distributed.parallel import initialize_parallel
    from tests.transformer_engine.stub import rotate

    parallel = initialize_parallel(layout, seed=0)  # over gloo, before the process believes in a GPU
    importlib.import_module("megatron.core.extensions.transformer_engine").apply_rotary_pos_emb = rotate
    _believe_in_a_gpu()
    return function(parallel, *arguments)


if __name__ == "__main__":
    main()
