"""A run folder that an earlier version wrote, before the code was put into rooms: it still resumes, reports and replays."""

import json
import shutil
from pathlib import Path

import pytest

from megatron_entropic.config.loading import load_config
from megatron_entropic.observability.metrics import read_metrics
from tests.command_line import Outcome, megatron_entropic

OLDER = Path(__file__).with_name("data") / "run_before_the_rooms"
"""Four steps of a tiny random model, EntroPIC and AEnt together, checkpoint after the second; with the model it began from."""
NOT_COMPARED = ("time/", "perf/")
SAME = 1e-5
"""Relative: the processor that wrote it may have added in another order."""


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """A copy to work on."""
    shutil.copytree(OLDER, tmp_path / "older")
    return tmp_path / "older"


def run(older: Path, *arguments: str) -> Outcome:
    """With as many threads as the run had: another number adds up in another order, which estimates of small differences show."""
    return megatron_entropic(*arguments, f"model.hf_path={older / 'model'}", environ={"OMP_NUM_THREADS": "2"})


def assert_same_metrics(found: Path, expected: Path) -> None:
    ours, theirs = read_metrics(found), read_metrics(expected)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs] == [0, 1, 2, 3]
    for line, before in zip(ours, theirs, strict=True):
        for name, value in before.items():
            if not name.startswith(NOT_COMPARED):
                assert line[name] == (value if value is None else pytest.approx(value, rel=SAME, abs=1e-7)), (line["step"], name)


@pytest.mark.slow
def test_it_resumes(older: Path) -> None:
    """From its checkpoint on, and makes the steps that the older version made."""
    done = run(older, "train", str(older / "run"), "--resume")
    assert done.code == 0, done.output
    assert "after 2 steps" in (older / "run" / "logs" / "rank-0.log").read_text()
    assert_same_metrics(older / "run" / "metrics.jsonl", OLDER / "run" / "metrics.jsonl")
    assert (older / "run" / "hf" / "model.safetensors").is_file()


@pytest.mark.slow
def test_its_rollouts_replay(older: Path) -> None:
    done = run(
        *(older, "train", str(older / "run" / "config.yaml"), f"run.dir={older / 'again'}"),
        *("rollout.engine=replay", f"rollout.replay_path={older / 'run' / 'rollouts'}"),
    )
    assert done.code == 0, done.output
    assert_same_metrics(older / "again" / "metrics.jsonl", OLDER / "run" / "metrics.jsonl")


def test_it_reports(older: Path) -> None:
    done = megatron_entropic("report", str(older / "run"))
    assert done.code == 0, done.output
    page = (older / "run" / "report.html").read_text()
    assert "4 steps" in page or "4 of 4" in page
    assert (older / "run" / "plots").is_dir()


def test_its_settings_are_read_as_they_were() -> None:
    cfg = load_config(OLDER / "run" / "config.yaml")
    assert (cfg.control.kind, cfg.control.coefficient, cfg.optimizer.lr, cfg.batch.mini_batches) == ("entropic+aent", 0.05, 0.02, 2)
    state = json.loads((OLDER / "run" / "checkpoints" / "step-000002" / "state.json").read_text())
    assert set(state["controller"]) == {"entropic", "aent"}
