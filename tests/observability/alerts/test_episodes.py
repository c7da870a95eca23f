"""Alerts come once for as long as trouble lasts, with a clear end, and a resumed run is where it was."""

import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_entropic.config.loading import load_config
from megatron_entropic.observability.alerts.episodes import Episode
from megatron_entropic.observability.run_warnings import read_warnings
from megatron_entropic.observability.trackers import Alert
from megatron_entropic.observability.watch import Watch
from tests.observability.test_watch import GOOD

NO_SIGNAL = {"control/active_fraction": 0.0}
TOO_LOW = {"policy/entropy": 0.4}


class Run:
    """A watched run, of which `alerts` holds (kind, state, step)."""

    def __init__(self, folder: Path, *settings: str, history: list[dict[str, Any]] | None = None) -> None:
        self.lines: list[dict[str, Any]] = history or []
        self.delivered: list[Alert] = []
        cfg = load_config("quickstart", [f"run.dir={folder}", "alerts.disk_free_gb=0", "alerts.clear_steps=2", *settings])
        self.watch = Watch(cfg, 4.6, self.delivered.append, self.lines)

    def steps(self, count: int, change: dict[str, Any] | None = None) -> "Run":
        for _ in range(count):
            line = {**GOOD, "reward/mean": 0.5, **(change or {}), "step": len(self.lines)}
            self.watch.log(len(self.lines), line)
            self.lines.append(line)
        return self

    @property
    def alerts(self) -> list[tuple[str, str, int]]:
        return [(alert.kind, alert.state, alert.step) for alert in self.delivered]


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 4), st.integers(1, 4))
def test_beginnings_and_ends_alternate_and_follow_the_rule(trouble: list[bool], patience: int, clear: int) -> None:
    episode, begun = Episode(patience, clear), False
    for index, here in enumerate(trouble):
        change = episode.step(here)
        seen = trouble[: index + 1]
        if change == "begins":
            assert not begun
            assert all(seen[-patience:])
            assert len(seen) >= patience
        elif change == "over":
            assert begun
            assert not any(seen[-clear:])
        else:
            assert begun or patience > len(seen) or not all(seen[-patience:])
        begun = {"begins": True, "over": False, None: begun}[change]


def test_an_alert_comes_once_and_ends(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    run = Run(tmp_path, "alerts.no_signal_steps=3")
    run.steps(2, NO_SIGNAL).steps(1).steps(2, NO_SIGNAL)
    assert run.alerts == []
    run.steps(3, NO_SIGNAL).steps(1).steps(4, NO_SIGNAL).steps(4)
    assert run.alerts == [("no_signal", "begins", 5), ("no_signal", "over", 14)]
    assert run.delivered[0].steps == 3
    assert (run.delivered[1].steps, run.delivered[1].message) == (9, "after 9 steps with it there were 2 without")
    run.steps(3, NO_SIGNAL)
    assert run.alerts[2:] == [("no_signal", "begins", 19)], "a new episode"
    assert caplog.text.count("alert no signal (step") == 2
    assert caplog.text.count("alert no signal is over (step 15)") == 1
    assert [warning.kind for warning in read_warnings(tmp_path)] == ["no_signal"], "noted once, for the report"


@pytest.mark.parametrize("killed_after", range(1, 12))
def test_a_resumed_run_is_where_it_was(tmp_path: Path, killed_after: int) -> None:
    """Alerts of the steps before the checkpoint are not said again; those after it come as in a run that was not killed."""
    changes = [NO_SIGNAL] * 4 + [{}] * 3 + [NO_SIGNAL] * 5
    whole, first = Run(tmp_path / "whole", "alerts.no_signal_steps=3"), Run(tmp_path / "run", "alerts.no_signal_steps=3")
    (tmp_path / "whole").mkdir()
    (tmp_path / "run").mkdir()
    for change in changes:
        whole.steps(1, change)
    for change in changes[:killed_after]:
        first.steps(1, change)
    second = Run(tmp_path / "run", "alerts.no_signal_steps=3", history=first.lines)
    for change in changes[killed_after:]:
        second.steps(1, change)
    assert (
        first.alerts + second.alerts
        == whole.alerts
        == [
            ("no_signal", "begins", 2),
            ("no_signal", "over", 5),
            ("no_signal", "begins", 9),
        ]
    )


def test_entropy_out_of_band(tmp_path: Path) -> None:
    """Of the target, or of the setpoint while that is on its way to it."""
    run = Run(tmp_path, "alerts.entropy_steps=3").steps(1)
    run.steps(5, TOO_LOW).steps(2)
    assert run.alerts == [("entropy_out_of_band", "begins", 3), ("entropy_out_of_band", "over", 7)]
    assert "the entropy of 0.4 nats is more than alerts.entropy_band=0.25 of the 0.85 wanted away" in run.delivered[0].message
    assert Run(tmp_path, "alerts.entropy_steps=3").steps(9, {**TOO_LOW, "control/setpoint": 0.45}).alerts == []
    assert Run(tmp_path, "alerts.entropy_steps=0").steps(9, TOO_LOW).alerts == []
    assert Run(tmp_path, "alerts.entropy_steps=1", "control.kind=none").steps(9, TOO_LOW).alerts == []
    bounded = Run(tmp_path, "alerts.entropy_steps=1", "control.kind=none", "alerts.entropy_low=0.5", "alerts.entropy_high=1")
    bounded.steps(1, TOO_LOW).steps(2).steps(1, {"policy/entropy": 1.5}).steps(2, {"policy/entropy": 0.7})
    assert [alert.message for alert in bounded.delivered if alert.state == "begins"] == [
        "the entropy of 0.4 nats is below alerts.entropy_low=0.5",
        "the entropy of 1.5 nats is above alerts.entropy_high=1",
    ]


def test_reward_collapse(tmp_path: Path) -> None:
    """Against the best it has been, smoothed; a task that is hard from the start, and a bad step, are none."""
    run = Run(tmp_path, "alerts.reward_steps=3").steps(30, {"reward/mean": 0.8})
    run.steps(1, {"reward/mean": 0.0}).steps(10, {"reward/mean": 0.8})
    assert run.alerts == []
    run.steps(15, {"reward/mean": 0.1})
    ((kind, state, step),) = run.alerts
    assert (kind, state) == ("reward_collapse", "begins")
    assert 46 < step < 56
    run.steps(30, {"reward/mean": 0.8})
    assert run.alerts[1][:2] == ("reward_collapse", "over")
    assert Run(tmp_path, "alerts.reward_steps=1").steps(50, {"reward/mean": 0.01}).alerts == []
    assert Run(tmp_path, "alerts.reward_steps=1").steps(50, {"reward/mean": float("nan")}).alerts == []


def test_a_full_disk_is_seen_coming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what the disk itself says; a run whose disk is still full when it is resumed says so again."""
    run = Run(tmp_path, "alerts.disk_free_gb=1e9").steps(3)
    assert run.alerts == [("disk_nearly_full", "begins", 0)]
    assert "fewer than alerts.disk_free_gb=1e+09" in run.delivered[0].message
    assert Run(tmp_path, "alerts.disk_free_gb=1e9", history=run.lines).steps(1).alerts == [("disk_nearly_full", "begins", 3)]


def test_a_gap_of_log_probs(tmp_path: Path) -> None:
    run = Run(tmp_path, "alerts.logprob_gap_steps=2").steps(1, {"rollout/logprob_gap_mean": 0.1}).steps(1)
    assert run.alerts == []
    run.steps(2, {"rollout/logprob_gap_mean": 0.1}).steps(2)
    assert run.alerts == [("logprob_gap", "begins", 3), ("logprob_gap", "over", 5)]
