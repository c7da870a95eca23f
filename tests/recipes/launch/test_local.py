"""NeMo-Run's local executor trains for real."""

import os
import subprocess
from pathlib import Path

import pytest

from megatron_entropic.observability.metrics import read_metrics
from tests.recipes.launch.environment import SHRUNKEN, launch, launch_python

pytestmark = pytest.mark.slow


def test_a_recipe_trains_to_the_end_and_a_failure_is_told(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    command = [*SHRUNKEN, "--executor", "local", "parallel.tensor=2", f"run.dir={run_dir}"]
    done = launch(*command, home=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line["step"] for line in read_metrics(run_dir / "metrics.jsonl")] == [0, 1]
    assert (run_dir / "hf" / "model.safetensors").exists()
    assert "step 2/2" in done.stdout + done.stderr
    (experiment,) = (tmp_path / "launch" / "experiments" / "quickstart").iterdir()
    nemo = {"NEMORUN_HOME": str(tmp_path / "launch"), "HOME": str(tmp_path / "user"), "PATH": os.environ["PATH"]}
    kept = [launch_python().with_name("nemo"), "experiment", "logs", experiment.name]
    told = subprocess.run(kept, cwd=tmp_path, env=nemo, capture_output=True, text=True, timeout=60, check=False)
    assert "step 2/2" in told.stdout + told.stderr, "NeMo-Run's own tools find the experiment"
    assert not list((tmp_path / "user").glob(".[nlt]*")), "nothing of NeMo-Run belongs into the user's home"

    again = launch(*command, home=tmp_path)
    assert again.returncode == 1
    assert f"{run_dir} holds an earlier run" in again.stdout + again.stderr
