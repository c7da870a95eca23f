"""The Triton kernels compile for a GPU (compute capability 9.0) where there is none, by both versions of triton_versions.py."""

import json
import re
import subprocess
import sys
from functools import cache
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.entropy.triton_versions import INSTALLED, OF_TORCH_ON_A_GPU, ROOT, environment_with

pytestmark = pytest.mark.slow
REGISTERS = 80
"""A thread: three programs of 256 threads then share a multiprocessor, with 24 KB in flight in bfloat16 (entropy/triton/common.py)."""

INSTRUCTIONS = {
    "moments": 850,
    "moments, clamp": 1150,
    "gradient": 720,
    "gradient, clamp": 1000,
    "count, first": 640,
    "count, later": 720,
}
"""Of whole kernels: 16 columns a thread twice, since the last block has a code of its own, and what surrounds them."""


@cache
def compile_all(version: str, dtype: str, block: int, *options: str) -> tuple[str, dict[str, dict[str, Any]]]:
    """(Triton's version, by name of the kernel what tests/entropy/compiled_kernels.py says of it)."""
    command = [sys.executable, "-m", "tests.entropy.compiled_kernels", dtype, str(block), *options]
    with TemporaryDirectory() as folder:
        environment = {**environment_with(version), "TRITON_CACHE_DIR": folder, "OMP_NUM_THREADS": "1"}
        run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
    first, *others = map(json.loads, run.stdout.splitlines())
    return first["triton"], {kernel["name"]: kernel for kernel in others}


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize(("version", "options"), [(OF_TORCH_ON_A_GPU, ()), (INSTALLED, ("--all",))])
def test_kernels_fit_a_gpu(version: str, options: tuple[str, ...], dtype: str) -> None:
    """Nothing is spilled, so many programs share a multiprocessor as the bandwidth wants, and no kernel is longer than it should be."""
    found, kernels = compile_all(version, dtype, 4096, *options)
    assert found == version or version == INSTALLED
    assert len(kernels) == (15 if options else 10)
    for name, kernel in kernels.items():
        assert (kernel["stack"], kernel["local"], kernel["spills"]) == (0, 0, 0), name
        assert kernel["registers"] <= REGISTERS, (name, kernel["registers"])
        assert kernel["instructions"] <= INSTRUCTIONS.get(name, 1400), (name, kernel["instructions"])
        if name.startswith(("moments", "gradient", "count")):
            assert "ld.global.v4.b32" in kernel["ptx"], name


def test_counts_of_digits_in_assembly() -> None:
    """Triton 3.7 would count by votes; in their place one addition a column, between zeroing and reading, and barriers between them."""
    for block, dtype in ((4096, "bf16"), (128, "fp32")):
        _, kernels = compile_all(OF_TORCH_ON_A_GPU, dtype, block)
        for name in ("count, first", "count, later"):
            ptx = kernels[name]["ptx"]
            assert "vote" not in ptx
            steps = re.findall(r"st\.shared|bar\.sync|red\.shared|ld\.shared", ptx)
            threads = max(32, block // 16)
            each, bins = block // threads, 256 // threads  # whole blocks, and the last one
            wanted = ["st.shared"] * bins + ["bar.sync"] + ["red.shared"] * 2 * each + ["bar.sync"]
            assert steps[: len(wanted)] == wanted, (block, dtype, name)
            assert steps[len(wanted) :] in (["ld.shared"] * bins, ["ld.shared"] * 2 * bins)  # twice, for two layouts
            assert ptx.count("digit_counts[256]") == 1
            guarded = len(re.findall(r"@counted red\.shared", ptx))
            assert guarded == (each if name == "count, first" else 2 * each)


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("block", [128, 4096])
def test_kernels_compile_with_16_byte_accesses(dtype: str, block: int) -> None:
    _, kernels = compile_all(INSTALLED, dtype, block, "--all")
    assert len(kernels) == 15
    for name, kernel in kernels.items():
        assert (kernel["local"], kernel["spills"]) == (0, 0), name
        if name.startswith("moments"):
            assert "ex2.approx.ftz.f32" in kernel["ptx"]
        if block == 4096 and name.startswith(("moments", "gradient", "count")):
            assert "ld.global.v4.b32" in kernel["ptx"], name
        if block == 4096 and name.startswith("gradient"):
            assert "st.global.v4.b32" in kernel["ptx"], name
