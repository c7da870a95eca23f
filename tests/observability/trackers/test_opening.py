"""The trackers that settings ask for, from outside too: what they are given, in which order, and what a mistake in one is."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_entropic.config import Config, TrainerConfig
from megatron_entropic.observability.trackers import Alert, SampleRow, Trackers
from megatron_entropic.observability.trackers.opening import tracker_names
from megatron_entropic.observability.trackers.tracker import TrackerRefusedError, validation_results
from tests.command_line import ROOT

Make = Callable[..., Config]

OLD = """
class Old:  # as trackers were before they could have more
    def __init__(self, run_dir, run_id, first_step):
        self.run_id = run_id or "old.txt"
        self.path = run_dir / self.run_id
        self.path.parent.mkdir(exist_ok=True)
        self.path.open("a").write(f"from {first_step}\\n")

    def log(self, step, metrics):
        self.path.open("a").write(f"{step} {metrics['policy/entropy']}\\n")

    def close(self):
        self.path.open("a").write("closed\\n")
"""


def test_tensorboard_is_there_once_however_it_is_asked_for() -> None:
    assert tracker_names(TrainerConfig()) == ["tensorboard"]
    assert tracker_names(TrainerConfig(trackers=("wandb", "tensorboard", "wandb"))) == ["tensorboard", "wandb"]
    assert tracker_names(TrainerConfig(tensorboard=False, trackers=("tensorboard",))) == ["tensorboard"]
    assert tracker_names(TrainerConfig(tensorboard=False)) == []


def test_no_trackers_write_nothing(configured: Make) -> None:
    cfg = configured()
    trackers = Trackers(cfg)
    trackers.log(0, {"policy/entropy": 1.0})
    trackers.close()
    assert not cfg.run_dir.exists()


def test_one_of_before_works_unchanged(configured: Make, tmp_path: Path) -> None:
    (tmp_path / "old.py").write_text(OLD)
    name, ids = f"{tmp_path}/old.py:Old", dict[str, str]()
    for steps in (range(2), range(1, 3)):  # the second time resumed
        history = [{"step": step, "policy/entropy": 0.5} for step in range(steps.start)]
        trackers = Trackers(configured(name), first_step=steps.start, ids=ids, history=history)
        for step in steps:
            trackers.log_samples(step, [])
            trackers.log(step, {"policy/entropy": 0.5, "validation/x/avg": 1.0})
        trackers.log_alert(Alert("no_signal", "begins", 1, 5, "none"))
        trackers.log_summary({"status": "finished"})
        trackers.close(time.monotonic() + 60)
    assert ids == {name: "old.txt"}
    written = (configured().run_dir / "old.txt").read_text().splitlines()
    assert written == ["from 0", "0 0.5", "1 0.5", "closed", "from 1", "1 0.5", "2 0.5", "closed"]


def test_the_page_of_trackers_shows_one_that_takes_everything(configured: Make, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "trackers.md").read_text()
    (code,) = re.findall(r"^```python\n# my_tracker.py\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    (tmp_path / "my_tracker.py").write_text(code)
    cfg = configured(f"{tmp_path}/my_tracker.py:Table")
    cfg.run_dir.mkdir()
    trackers = Trackers(cfg)
    trackers.log_samples(0, [SampleRow("2+2=", "4", 1.0, 2, "stop")])
    trackers.log(0, {"policy/entropy": 0.5, "validation/a set/avg": 0.25, "validation/a set/greedy": None})
    trackers.log_alert(Alert("no_signal", "begins", 0, 5, "none"))
    trackers.log_summary({"status": "finished"})
    trackers.close(time.monotonic() + 60)
    written = [json.loads(line) for line in (cfg.run_dir / "tracked.jsonl").read_text().splitlines()]
    assert written == [
        {"lr": cfg.optimizer.lr},
        {"step": 0, "responses": ["4"]},
        {"step": 0, "entropy": 0.5},
        {"step": 0, "validation": {"a set": {"avg": 0.25}}},
        {"step": 0, "alert": "no signal (step 1)"},
        {"status": "finished"},
    ]


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("Old = 3", "Old is no function but int"),
        ("def Old(run_dir): pass", "TypeError: Old() takes 1 positional argument but 3 were given"),
        ("class Old:\n    def __init__(self, *given): pass\n    def log(self): pass", "has no run_id, no close"),
        ("raise KeyError('x')", "KeyError: 'x'"),
    ],
)
def test_a_mistake_in_one_ends_the_start(configured: Make, tmp_path: Path, code: str, error: str) -> None:
    (tmp_path / "old.py").write_text(code)
    with pytest.raises(TrackerRefusedError, match=re.escape(error)) as raised:
        Trackers(configured(f"{tmp_path}/old.py:Old"))
    assert f"trainer.trackers={tmp_path}/old.py:Old: " in str(raised.value)


def test_names_of_sets_may_have_slashes() -> None:
    metrics = {"validation/a/b/avg": 0.5, "validation/a/b/pass": 1, "validation/odd": 2.0, "reward/mean": 0.0, "validation/c/avg": None}
    assert validation_results(metrics) == {"a/b": {"avg": 0.5, "pass": 1.0}}
