"""NeMo-Run's local executor trains for real."""

from pathlib import Path

import pytest

from megatron_entropic.observability.metrics import read_metrics
from tests.launch.environment import SHRUNKEN, launch

pytestmark = pytest.mark.slow


def test_a_recipe_trains_to_the_end_and_a_failure_is_told(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    command = [*SHRUNKEN, "--executor", "local", "parallel.tensor=2", f"run.dir={run_dir}"]
    done = launch(*command, home=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line["step"] for line in read_metrics(run_dir / "metrics.jsonl")] == [0, 1]
    assert (run_dir / "hf" / "model.safetensors").exists()
    assert "step 2/2" in done.stdout + done.stderr
    assert list((tmp_path / "launch" / "experiments" / "quickstart").iterdir())
    assert not list((tmp_path / "user").glob(".[nlt]*")), "nothing of NeMo-Run belongs into the user's home"

    again = launch(*command, home=tmp_path)
    assert again.returncode == 1
    assert f"{run_dir} holds an earlier run" in again.stdout + again.stderr
