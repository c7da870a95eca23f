"""Headline numbers, checked against metrics whose answers are known."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from megatron_entropic.control.handoff import Phase
from megatron_entropic.observability.run_data import load_run, smooth, smoothing_window
from megatron_entropic.observability.summary import summarise
from tests.observability.synthetic_runs import MakeRun


def _edit(run_dir: Path, **fields: object) -> None:
    """Sets metric fields (with __ for /) in every line; a callable gets the step."""
    path = run_dir / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        for name, value in fields.items():
            line[name.replace("__", "/", 1)] = value(line["step"]) if callable(value) else value
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_tracking_error_is_the_last_third_against_the_target(make_run: MakeRun) -> None:
    run_dir = make_run(steps=7)
    _edit(run_dir, policy__entropy=lambda step: 5.0 if step < 4 else 0.9 + 0.01 * (step - 3), control__target_entropy=0.8)
    summary = summarise(run_dir)  # ceil(7 / 3) = 3 steps: 0.91, 0.92, 0.93
    assert summary.entropy_last == pytest.approx(0.92, abs=1e-12)
    assert summary.tracking_error == pytest.approx(0.12, abs=1e-12)
    assert summary.tracking_error_percent == pytest.approx(15.0, abs=1e-9)
    assert (summary.steps_done, summary.steps_planned, summary.complete) == (7, 40, False)


def test_a_scheduled_target_is_averaged_over_the_same_steps(make_run: MakeRun) -> None:
    run_dir = make_run(steps=6)
    _edit(run_dir, policy__entropy=1.0, control__target_entropy=lambda step: [9.0, 9.0, 9.0, 9.0, 0.6, 0.8][step])
    assert summarise(run_dir).tracking_error == pytest.approx(0.3, abs=1e-12)


def test_a_target_of_zero_has_no_percentage(make_run: MakeRun) -> None:
    run_dir = make_run(steps=3)
    _edit(run_dir, policy__entropy=0.25, control__target_entropy=0.0)
    summary = summarise(run_dir)
    assert summary.tracking_error == 0.25
    assert summary.tracking_error_percent is None


def test_a_run_without_control_has_no_tracking_error_even_if_a_target_was_logged(make_run: MakeRun) -> None:
    run_dir = make_run(kind="none")
    _edit(run_dir, control__target_entropy=0.1)
    summary = summarise(run_dir)
    assert summary.target_last is None
    assert summary.tracking_error is None
    assert summary.entropy_first is not None
    assert summary.entropy_last is not None
    assert summary.entropy_first - summary.entropy_last > 0.2


def test_a_target_of_the_clamped_entropy_is_compared_with_that(make_run: MakeRun) -> None:
    run_dir = make_run(steps=3)
    config = run_dir / "config.yaml"
    config.write_text(config.read_text().replace("steer_by: entropy", "steer_by: clamped_entropy"))
    _edit(run_dir, policy__entropy=1.0, policy__clamped_entropy=0.7, control__target_entropy=0.75)
    summary = summarise(run_dir)
    assert (summary.entropy_last, summary.steered_last) == (1.0, 0.7)
    assert summary.tracking_error == pytest.approx(-0.05)


@pytest.mark.parametrize(
    ("phases", "tuned", "sentence"),
    [
        ([Phase.ALPHA] * 10, [0] * 4 + [1] * 6, "alpha steered 100% of the steps; gains tuned from step 5"),
        (
            [Phase.PROBING] * 2 + [Phase.ALPHA] * 5 + [Phase.SHARED] * 2 + [Phase.EXHAUSTED],
            [0] * 3 + [1] * 6 + [0],
            "alpha steered 50% of the steps, the bonus shared 20%, the target was out of reach in 10%, the probe took 20%; "
            "gains tuned from step 4, in the end the given ones again",
        ),
        (
            [Phase.IDLE] * 5 + [Phase.BONUS] * 5,
            [0] * 10,
            "the bonus alone steered 50% of the steps; gains as given: the response to alpha was not clear enough to tune them",
        ),
    ],
)
def test_control_in_a_sentence(make_run: MakeRun, phases: list[Phase], tuned: list[int], sentence: str) -> None:
    run_dir = make_run(steps=10)
    _edit(run_dir, control__phase=lambda step: phases[step].number, control__gains_tuned=lambda step: tuned[step])
    assert summarise(run_dir).control == sentence


def test_a_run_that_does_not_say_who_steered_has_no_sentence(make_run: MakeRun) -> None:
    assert summarise(make_run(kind="aent", steps=3)).control is None


def test_times_and_rates(make_run: MakeRun) -> None:
    run_dir = make_run(steps=5)
    _edit(run_dir, time__step_s=4.0, time__rollout_s=2.0, time__update_s=1.0, time__sync_s=0.5, rollout__logprob_gap=lambda s: s * 1e-6)
    _edit(run_dir, perf__tokens_per_s=lambda step: [1, 100, 200, 300, 1e6][step], reward__mean=lambda step: step / 4)
    summary = summarise(run_dir)
    assert summary.time_shares == pytest.approx({"rollout": 0.5, "update": 0.25, "sync": 0.125, "other": 0.125})
    assert (summary.step_seconds, summary.tokens_per_second) == (4.0, 200.0)
    _edit(run_dir, time__validation_s=lambda step: 0.5 if step == 4 else None)
    shares = summarise(run_dir).time_shares
    assert shares == pytest.approx({"rollout": 0.5, "update": 0.25, "sync": 0.125, "validation": 0.025, "other": 0.1})
    assert summary.logprob_gap_max == 4e-6
    assert (summary.reward_first, summary.reward_final, summary.reward_last) == (0.0, 1.0, 0.875)


def test_non_finite_steps_are_named(make_run: MakeRun) -> None:
    run_dir = make_run(steps=4)
    _edit(run_dir, grad_norm=lambda step: "NaN" if step == 2 else 1.0)
    assert summarise(run_dir).non_finite_steps == (3,)  # counted from 1


def test_a_run_without_steps_has_no_numbers(make_run: MakeRun) -> None:
    summary = summarise(make_run(steps=0))
    assert summary.steps_done == 0
    assert summary.entropy_last is None
    assert summary.step_seconds is None
    assert summary.time_shares == {}


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.yaml: no such file; .* is not the folder of a run"):
        load_run(tmp_path)
    (tmp_path / "config.yaml").write_text("!!python/object/apply:os.system ['true']")
    with pytest.raises(ValueError, match=r"config\.yaml: not YAML"):
        load_run(tmp_path)


def test_smoothing_keeps_lines_straight_and_skips_nans() -> None:
    x = np.arange(60.0)
    assert smoothing_window(60) == 7
    np.testing.assert_allclose(smooth(x), x, atol=1e-12)  # symmetric windows: no bias, at the ends neither
    y = x.copy()
    y[30] = math.nan
    assert np.isfinite(smooth(y)).all()
    assert smooth(y)[33] == pytest.approx((31 + 32 + 33 + 34 + 35 + 36) / 6)
    assert smoothing_window(11) == 1
