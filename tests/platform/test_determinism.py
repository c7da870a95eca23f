"""trainer.deterministic: what it switches on, and that a CPU's numbers do not change by it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_entropic.observability.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import os, torch
from megatron_entropic import platform
platform.make_deterministic()
platform.make_deterministic()
print(torch.are_deterministic_algorithms_enabled(), os.environ["NVTE_ALLOW_NONDETERMINISTIC_ALGO"],
      os.environ["CUBLAS_WORKSPACE_CONFIG"], os.environ["NCCL_ALGO"])
"""


def test_every_library_is_told() -> None:
    """In a process of its own: nothing switches it off again."""
    set_by_user = {"NVTE_ALLOW_NONDETERMINISTIC_ALGO": "1", "CUBLAS_WORKSPACE_CONFIG": ":16:8"}
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("NCCL_ALGO", None)
    for given, expected in (({}, "True 0 :4096:8 Ring"), (set_by_user, "True 0 :16:8 Ring")):
        done = subprocess.run([sys.executable, "-c", PROGRAM], env={**environment, **given}, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == expected


@pytest.mark.slow
def test_a_cpus_numbers_are_the_same_with_it(tmp_path: Path) -> None:
    runs = []
    for deterministic in ("false", "true"):
        folder = tmp_path / deterministic
        settings = [f"run.dir={folder}", f"trainer.deterministic={deterministic}", "trainer.steps=2", "rollout.engine=local"]
        settings += ["trainer.report=false", "trainer.tensorboard=false", "parallel.tensor=1", "batch.prompts_per_step=4"]
        command = [sys.executable, "-m", "megatron_entropic.cli", "train", "quickstart", *settings]
        subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, check=True)
        lines = read_metrics(folder / "metrics.jsonl")
        runs.append([{name: value for name, value in line.items() if not name.startswith(("time/", "perf/"))} for line in lines])
    assert runs[0] == runs[1]
    assert len(runs[0]) == 2
