"""A run's warnings: once, whatever is resumed, and noted where the report finds it."""

import logging
import re
from pathlib import Path

import pytest

from megatron_entropic.config import Config
from megatron_entropic.config.loading import load_config
from megatron_entropic.control.handoff import Phase
from megatron_entropic.observability.run_warnings import read_warnings
from megatron_entropic.observability.watch import Watch

GOOD = {
    "control/active_fraction": 0.5,
    "response/truncated": 0.1,
    "reward/solve_none": 0.2,
    "reward/solve_all": 0.2,
    "policy/entropy": 0.9,
    "control/target_entropy": 0.85,
    "control/phase": Phase.ALPHA.number,
    "rollout/logprob_gap": 1e-4,
    "rollout/logprob_gap_mean": 1e-6,
}


def config(folder: Path, *overrides: str) -> Config:
    return load_config("quickstart", [f"run.dir={folder}", *overrides])


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"control/active_fraction": 0.0, "reward/solve_none": 1.0}, "no_signal", "no response to any prompt was right"),
        ({"control/active_fraction": 0.0, "reward/solve_all": 1.0}, "no_signal", "every response to every prompt was right"),
        ({"control/active_fraction": 0.0}, "no_signal", "the rewards of each prompt's samples were all equal"),
        ({"response/truncated": 1.0}, "all_truncated", "every response was cut off at rollout.max_new_tokens=16"),
        ({"policy/entropy": 2.5}, "far_from_target", "starts at 2.5 nats, the target is 0.85.*set control.target_entropy=2.5, or"),
        ({"policy/entropy": 0.2}, "far_from_target", "starts at 0.2 nats"),
        (
            {"rollout/logprob_gap_mean": 0.002},
            "logprob_gap",
            "0.002 nats .* where up to 0.001 in the mean, 0.05 at most.*a config.json",
        ),
        ({"rollout/logprob_gap": 0.2}, "logprob_gap", "and 0.2 at most"),
        ({"rollout/logprob_gap_mean": float("nan")}, "logprob_gap", "are nan nats"),
        ({"control/target_entropy": 7.0, "policy/entropy": 7.0}, "impossible_target", "no policy has the target of 7 nats"),
    ],
)
def test_each_trouble_is_said_once_and_noted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: dict[str, float], kind: str, message: str
) -> None:
    seen = [{**GOOD, **change, "step": step} for step in range(4)]
    for first in (0, 2):  # the second time as a resumed run
        watch = Watch(config(tmp_path), 4.6, history=seen[:first])
        watch.log(first, seen[first])
        watch.log(first + 1, seen[first + 1])
    with caplog.at_level(logging.WARNING):
        assert [(warning.kind, warning.step) for warning in read_warnings(tmp_path)] == [(kind, 0)]
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1
    assert re.search(message, caplog.text)


def test_a_run_that_learns_is_not_warned(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    watch = Watch(config(tmp_path, "alerts.entropy_band=0"), 4.6)
    for step in range(50):
        watch.log(step, {**GOOD, "policy/entropy": 0.9 if step == 0 else 0.1})
    Watch(config(tmp_path, "control.kind=none"), 4.6).log(0, {**GOOD, "policy/entropy": 9.0})
    assert read_warnings(tmp_path) == []
    assert caplog.text == ""


def test_a_controller_at_the_end_of_its_means_is_said_when_it_lasts(tmp_path: Path) -> None:
    watch = Watch(config(tmp_path), 4.6)
    exhausted = {**GOOD, "control/phase": Phase.EXHAUSTED.number}
    for step in range(9):
        watch.log(step, exhausted)
    watch.log(9, GOOD)
    assert read_warnings(tmp_path) == []
    for step in range(10):
        watch.log(20 + step, exhausted)
    assert [(warning.kind, warning.step) for warning in read_warnings(tmp_path)] == [("authority_lost", 29)]


def test_a_torn_line_of_a_crash_is_left_out(tmp_path: Path) -> None:
    Watch(config(tmp_path), 4.6).log(0, {**GOOD, "response/truncated": 1.0})
    with (tmp_path / "warnings.jsonl").open("a") as file:
        file.write('{"kind": "no_si')
    assert [warning.kind for warning in read_warnings(tmp_path)] == ["all_truncated"]
