"""A run folder has one owner: whoever comes second is refused by name, and neither run takes harm."""

import json
import os
from pathlib import Path

import pytest

from megatron_entropic.observability.metrics import read_metrics
from megatron_entropic.system.atomic_files import write_atomically
from tests.command_line import megatron_entropic
from tests.running import Running
from tests.tiny_models import TINY_DECOMPOSE

pytestmark = [pytest.mark.slow, pytest.mark.distributed]
SETTINGS = (
    "rollout.engine=local",
    "parallel.tensor=1",
    "batch.prompts_per_step=4",
    "batch.samples_per_prompt=2",
    "checkpoint.every=1",
    "trainer.steps=1000",
    "trainer.tensorboard=false",
    "trainer.export_hf=false",
    f"model.hf_path={TINY_DECOMPOSE}",
)


def test_a_second_train_resume_or_overwrite_is_refused_and_readers_are_not(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with Running(folder, "train", "quickstart", *SETTINGS, f"run.dir={folder}") as running:
        assert running.wait_until(lambda: running.steps >= 2)
        settings = (folder / "config.yaml").read_bytes()
        refused = f"{folder}: the run is in use by pid {running.process.pid} on {os.uname().nodename}"
        for second in (
            ["train", str(folder), "--resume", "trainer.steps=3"],
            ["train", "quickstart", f"run.dir={folder}", "--overwrite"],
            ["repair", str(folder)],
        ):
            outcome = megatron_entropic(*second)
            assert outcome.code == 2, outcome.output
            assert refused in outcome.output
            assert "since 20" in outcome.output
        assert (folder / "config.yaml").read_bytes() == settings
        assert megatron_entropic("target", str(folder), "0.7").code == 0
        assert running.process.poll() is None
        give_away(folder)
        steps = running.steps
        assert running.wait() == 1, running.output
    assert f"error: {folder} was taken over by pid 7 on n9" in running.output
    assert running.steps - steps <= 1, "the line that was being written"
    assert [line["step"] for line in read_metrics(folder / "metrics.jsonl")] == list(range(running.steps))


def give_away(folder: Path) -> None:
    """Takes the run over as another machine would."""
    path = folder / ".owner.json"
    write_atomically(
        path, json.dumps(json.loads(path.read_text()) | {"host": "n9", "pid": 7, "token": "2-new", "generation": 2}).encode()
    )
