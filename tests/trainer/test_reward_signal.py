"""A run in which nothing is ever right says that nothing was trained, on the terminal and in its report, and warns once."""

from pathlib import Path

from megatron_entropic.observability.run_warnings import read_warnings
from tests.command_line import megatron_entropic

SETTINGS = (
    "rollout.engine=local",
    "parallel.tensor=1",
    "task.name=addition",  # of a model that answers another task
    "batch.prompts_per_step=4",
    "batch.samples_per_prompt=2",
    "rollout.max_new_tokens=2",
    "trainer.export_hf=false",
    "trainer.tensorboard=false",
    "checkpoint.every=0",
)


def test_nothing_trained_is_said_once_and_at_the_end(tmp_path: Path) -> None:
    run = tmp_path / "run #1"
    outcome = megatron_entropic("train", "quickstart", *SETTINGS, "trainer.steps=3", "trainer.report=true", f"run.dir={run}")
    assert outcome.code == 0, outcome.output
    assert "nothing was trained: 0 of 3 steps had a reward signal" in outcome.output
    kinds = [warning.kind for warning in read_warnings(run)]
    assert kinds[:2] == ["no_signal", "all_truncated"]
    assert len(kinds) == len(set(kinds))
    assert outcome.output.count("no response to any prompt was right") == 1
    page = (run / "report.html").read_text()
    assert "nothing was trained: 0 of 3 steps" in page
    assert "no response to any prompt was right" in page
