"""The Triton kernels compile for a GPU (compute capability 9.0) where there is none, by both versions of triton_versions.py."""

import json
import re
import subprocess
import sys
from functools import cache
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch

from megatron_entropic.entropy.records import order_keys
from tests.entropy.ptx_machine import Machine
from tests.entropy.triton_versions import INSTALLED, OF_TORCH_ON_A_GPU, ROOT, environment_with

pytestmark = pytest.mark.slow
REGISTERS = 80
"""A thread: three programs of 256 threads then share a multiprocessor, with 24 KB in flight in bfloat16 (entropy/triton/common.py)."""

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
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


@pytest.mark.parametrize(("block", "dtype"), [(4096, "bf16"), (4096, "fp32"), (128, "fp32")])
def test_counts_of_digits_in_assembly_are_exact(block: int, dtype: str) -> None:
    """Its PTX on a machine of our own: two rows of an odd number of columns, in two spans each, with -inf, -0.0 and ties."""
    _, kernels = compile_all(OF_TORCH_ON_A_GPU, dtype, block)
    columns, width = 2 * block + block // 2 + 3, 2 * block + block // 2 + 16
    logits_RC = (torch.randn(2, width, generator=torch.Generator().manual_seed(0)) * 3).to(DTYPES[dtype])
    logits_RC[0, 5], logits_RC[1, :9], logits_RC[:, 100:130] = -0.0, -torch.inf, logits_RC[:, 50:51]
    keys_RC = order_keys(logits_RC)[:, :columns].numpy().astype(np.int64)
    top = 8 * logits_RC.element_size() - 8
    first_R256 = counts_by_assembly(kernels["count, first"]["ptx"], logits_RC, columns, np.zeros(2, dtype=np.int64), 2 * block)
    assert np.array_equal(first_R256, [np.bincount(keys_C >> top & 255 ^ 128, minlength=256) for keys_C in keys_RC])
    prefix_R = keys_RC[:, 50] >> 8
    later_R256 = counts_by_assembly(kernels["count, later"]["ptx"], logits_RC, columns, prefix_R, 2 * block)
    alike = [keys_C[keys_C >> 8 == prefix] & 255 for keys_C, prefix in zip(keys_RC, prefix_R, strict=True)]
    assert min(map(len, alike)) >= 30
    assert np.array_equal(later_R256, [np.bincount(digits, minlength=256) for digits in alike])


def counts_by_assembly(ptx: str, logits_RC: torch.Tensor, columns: int, prefix_R: np.ndarray, span: int) -> np.ndarray:
    """[rows, 256] int32: what the kernel counts, given its arguments in a memory of their own."""
    rows, width = logits_RC.shape
    prefixes = prefix_R.astype(np.int16 if logits_RC.element_size() == 2 else np.int32)
    index_R, counts_R256 = np.arange(rows), np.zeros((rows, 256), dtype=np.int32)
    parts = [logits_RC.view(torch.uint8).numpy(), *(x.view(np.uint8) for x in (index_R, np.resize(prefixes, 8), counts_R256))]
    logits_at, index_at, prefixes_at, counts_at, end = np.cumsum([0, *(part.size for part in parts)]).tolist()
    memory_M = np.concatenate([part.reshape(-1) for part in parts])
    splits = -(-columns // span)
    machine = Machine(ptx, memory_M, [logits_at, index_at, width, prefixes_at, counts_at, columns, span, splits])
    for program in range(rows * splits):
        machine.run(program)
    return memory_M[counts_at:end].view(np.int32).reshape(rows, 256)


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
