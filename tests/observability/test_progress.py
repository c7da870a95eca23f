"""The progress display, and several trackers as one."""

import io
from pathlib import Path

import pytest

from megatron_entropic.control.handoff import Phase
from megatron_entropic.observability import MetricsWriter, ProgressBar, Tracker, TrackerGroup
from tests.observability.synthetic_runs import synthetic_metrics


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Recorder:
    def __init__(self, fails: bool = False) -> None:
        self.steps: list[int] = []
        self.closed = False
        self.fails = fails

    def log(self, step: int, metrics: object) -> None:
        self.steps.append(step)

    def close(self) -> None:
        self.closed = True
        if self.fails:
            raise OSError("disk full")


def test_group_logs_to_all_and_closes_all() -> None:
    first, second = Recorder(fails=True), Recorder()
    group = TrackerGroup([first, second])
    group.log(4, {})
    assert first.steps == second.steps == [4]
    with pytest.raises(ExceptionGroup, match="closing the trackers failed"):
        group.close()
    assert second.closed


def test_every_destination_is_a_tracker(tmp_path: Path) -> None:
    shown = io.StringIO()
    trackers: list[Tracker] = [MetricsWriter(tmp_path / "metrics.jsonl"), ProgressBar(3, stream=shown)]
    group = TrackerGroup(trackers)
    group.log(0, synthetic_metrics(1)[0])
    group.close()
    group.close()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1
    assert "step 1/3" in shown.getvalue()


def test_progress_off_a_terminal_is_one_plain_line_a_step() -> None:
    stream = io.StringIO()
    progress = ProgressBar(40, first_step=11, stream=stream)
    shown = {"policy/entropy": 0.9, "control/alpha": -0.25, "reward/mean": 0.75, "time/step_s": 3.04}
    progress.log(11, synthetic_metrics(1)[0] | shown | {"control/phase": Phase.ALPHA.number, "control/coefficient": 0.0})
    progress.close()
    assert stream.getvalue() == "step 12/40  entropy 0.900  target 0.900  alpha -0.250  reward 0.750  3.0 s\n"


def test_progress_names_the_phase_and_the_bonus_when_alpha_does_not_steer_alone() -> None:
    stream = io.StringIO()
    metrics = synthetic_metrics(1)[0] | {"control/alpha": -1.0, "control/coefficient": 0.02, "control/phase": Phase.SHARED.number}
    ProgressBar(40, stream=stream).log(11, metrics)
    assert "alpha -1.000  coef 2.0e-02  phase shared  reward" in stream.getvalue()


def test_progress_without_control_leaves_out_target_and_alpha() -> None:
    stream = io.StringIO()
    ProgressBar(2, stream=stream).log(0, synthetic_metrics(1, kind="none")[0])
    assert "target" not in stream.getvalue()
    assert "alpha" not in stream.getvalue()


def test_progress_on_a_terminal_is_a_bar_that_starts_where_the_run_resumes() -> None:
    stream = Terminal()
    progress = ProgressBar(40, first_step=11, stream=stream)
    progress.log(11, synthetic_metrics(1)[0] | {"control/alpha": -0.25})
    progress.close()
    progress.close()
    shown = stream.getvalue()
    assert "12/40" in shown
    assert "alpha=-0.250" in shown


def test_other_ranks_print_nothing() -> None:
    for stream in (io.StringIO(), Terminal()):
        progress = ProgressBar(40, rank=1, stream=stream)
        progress.log(0, synthetic_metrics(1)[0])
        progress.close()
        assert stream.getvalue() == ""
