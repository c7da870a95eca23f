"""The Triton kernels in Triton's interpreter, and that nothing but torch is needed to get there.

Both run in a process of their own: Triton decides at its import whether to interpret.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.entropy.triton_versions import VERSIONS, environment_with

ROOT = Path(__file__).parents[2]


def test_the_room_needs_torch_alone() -> None:
    """benchmarks/gpu.sh relies on it: no Megatron-Core, vLLM or pydantic on that machine; and Triton only where kernels run."""
    program = """
import sys, torch
before = set(sys.modules)
import megatron_entropic.entropy
assert not megatron_entropic.entropy.device_path.runs_kernels(torch.zeros(1))
foreign = {name.split(".")[0] for name in set(sys.modules) - before} - {"megatron_entropic", "numpy"}
print(sorted(foreign - set(sys.stdlib_module_names) - {"torch"}))
"""
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert run.stdout.strip() == "[]", run.stdout + run.stderr


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_kernels_in_the_interpreter(version: str) -> None:
    environment = {**environment_with(version), "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.entropy.kernel_checks"]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "13 checks passed, 0 failed" in run.stdout, run.stdout
