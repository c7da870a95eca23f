"""Guarantees of a controller for any plant: saved state, repeatability, schedules, and handling of bad measurements."""

import dataclasses
import itertools
import json
import logging
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_entropic.config import BatchConfig, Config, ControlConfig
from megatron_entropic.config.control import KINDS
from megatron_entropic.control import Controller, Measurement, NonFiniteEntropyError, make_controller
from megatron_entropic.control.handoff import Phase, next_phase
from megatron_entropic.control.setpoint import Shape, scheduled_target
from megatron_entropic.control.simulation import SimulatedPlant, simulate
from megatron_entropic.control.steering import Steering

repeatable = settings(derandomize=True, database=None, deadline=None, max_examples=40)
VARIANTS: list[dict[str, Any]] = [
    *({"kind": kind} for kind in KINDS),
    {"kind": "entropic", "gains": "fixed", "soft_setpoint": False, "smoothing": 0.5, "anti_windup": "back_calculation"},
    {
        "kind": "entropic",
        "target_unit": "initial",
        "target_entropy": 0.9,
        "target_points": ((40, 1.1), (90, 0.8)),
        "target_shape": "cosine",
    },
    {"kind": "entropic", "steer_by": "clamped_entropy", "target_entropy": 0.85},
]
FADING = SimulatedPlant(active_decay=30.0, empty_updates=frozenset({7, 50, 51}))


def make(**control: Any) -> Controller:
    """With two mini-batches in the settings, which kl_cov needs; a controller does not look at them."""
    cfg = Config(control=ControlConfig(**{"coefficient_warmup_steps": 5} | control), batch=BatchConfig(mini_batches=2))
    return make_controller(cfg)


def name(variant: dict[str, Any]) -> str:
    return "-".join(str(value) for value in variant.values() if isinstance(value, str))


def record(variant: dict[str, Any], mini_batches: int, seed: int = 0, updates: int = 120) -> list[Measurement]:
    """All that a controller is told in a closed loop with bad measurements, fading authority and a user's request."""
    told: list[Measurement] = []

    def remember(measured: Measurement) -> Measurement:
        if measured.executed == 60:
            measured = dataclasses.replace(measured, requested_target=0.7)
        told.append(measured)
        return measured

    simulate(make(**variant), FADING, updates, mini_batches, seed=seed, told=remember)
    return told


def replay(controller: Controller, told: list[Measurement]) -> list[str]:
    """Coefficients and report after each measurement, to the last bit (NaN equals NaN)."""
    seen = []
    for measured in told:
        controller.step(measured)
        seen.append(repr((controller.coefficients(), controller.report())))
    return seen


# -- state ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS, ids=name)
@pytest.mark.parametrize("mini_batches", [1, 4])
def test_a_saved_state_continues_to_the_last_bit(variant: dict[str, Any], mini_batches: int) -> None:
    """Saved through JSON at every update and handed to a new controller, which continues like the one that never stopped."""
    told = record(variant, mini_batches)
    whole = make(**variant)
    seen = replay(whole, told)
    relay: Controller = make(**variant)
    for measured, expected in zip(told, seen, strict=True):
        text = json.dumps(relay.state_dict(), allow_nan=False)
        relay = make(**variant)
        relay.load_state_dict(json.loads(text))
        assert replay(relay, [measured]) == [expected]
        assert len(text) < 2000
    assert relay.state_dict() == whole.state_dict()


@pytest.mark.parametrize("variant", VARIANTS, ids=name)
def test_the_state_is_all_there_is(variant: dict[str, Any]) -> None:
    """A state loaded into a controller with a past of its own leaves nothing of that past."""
    told, other = record(variant, 1), record(variant, 1, seed=9)
    first, second = make(**variant), make(**variant)
    replay(first, told[:70])
    replay(second, other[:33])
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert replay(second, told[70:]) == replay(first, told[70:])


@pytest.mark.parametrize("variant", VARIANTS, ids=name)
def test_the_same_measurements_give_the_same_bits(variant: dict[str, Any]) -> None:
    told = record(variant, 2)
    assert replay(make(**variant), told) == replay(make(**variant), told)


# -- schedules ------------------------------------------------------------------------------------------------------


@st.composite
def schedules(draw: st.DrawFn) -> list[tuple[int, float]]:
    updates = sorted(draw(st.sets(st.integers(1, 300), max_size=6)))
    return [(update, draw(st.floats(-1, 5))) for update in updates]


@given(st.floats(-1, 5), schedules(), st.sampled_from(("hold", "linear", "cosine")))
@repeatable
def test_schedules_go_through_their_points_monotonously(start: float, points: list[tuple[int, float]], shape: Shape) -> None:
    course = [scheduled_target(start, points, shape, update) for update in range(310)]
    corners = [(0, start), *points]
    assert [course[update] for update, _ in corners] == [target for _, target in corners]
    assert set(course[corners[-1][0] :]) == {corners[-1][1]}
    for (begin, earlier), (end, later) in itertools.pairwise(corners):
        between = course[begin : end + 1]
        if shape == "hold":
            assert set(between[:-1]) == {earlier}
        slack = 1e-12
        signs = [math.copysign(1, later - earlier) * (b - a) for a, b in itertools.pairwise(between)]
        assert all(sign >= -slack for sign in signs)
        assert all(min(earlier, later) - slack <= value <= max(earlier, later) + slack for value in between)


def test_linear_and_cosine_meet_in_the_middle() -> None:
    at = {shape: scheduled_target(1.0, [(100, 2.0)], shape, 25) for shape in ("linear", "cosine")}
    assert at == {"linear": 1.25, "cosine": pytest.approx((1 - math.cos(math.pi / 4)) / 2 + 1)}
    assert scheduled_target(1.0, [(100, 2.0)], "cosine", 50) == pytest.approx(1.5)


def test_the_setpoint_follows_a_schedule_and_then_the_user() -> None:
    control = ControlConfig(target_entropy=1.0, target_points=((100, 0.8),), target_unit="initial", soft_setpoint=False)
    controller = Steering(control, 0.9)
    plant = SimulatedPlant(entropy=0.5, noise=0.0)
    ask = {150: 0.45}
    history = simulate(
        controller, plant, 200, told=lambda measured: dataclasses.replace(measured, requested_target=ask.get(measured.executed))
    )
    setpoints = [moment.report["setpoint"] for moment in history]
    assert [setpoints[update] for update in (50, 100, 149)] == pytest.approx([0.45, 0.4, 0.4])
    assert setpoints[150:] == [0.45] * 50


def test_the_initial_entropy_is_what_was_measured_not_what_the_updates_since_then_left_of_it() -> None:
    controller = Steering(ControlConfig(target_entropy=1.0, target_unit="initial"), 0.9)
    controller.step(Measurement(entropy=2.0, version=0, executed=1, response=-0.1))
    assert controller.reference.target == 2.0
    assert controller.plant.level < 2.0


# -- bad measurements -----------------------------------------------------------------------------------------------


@given(st.sampled_from((math.nan, math.inf, -math.inf)), st.integers(1, 120), st.sampled_from((1, 2, 4)))
@repeatable
def test_a_bad_measurement_holds_everything(bad: float, position: int, mini_batches: int) -> None:
    """Output, integral, estimate and hand-off stay; only the efforts since the last measurement are remembered, and the count."""
    told = [measured for measured in record({"kind": "entropic"}, mini_batches) if math.isfinite(measured.entropy)]
    controller = Steering(ControlConfig(), 0.9)
    replay(controller, told[:position])
    before, coefficients = controller.state_dict(), controller.coefficients()
    following = told[position % len(told)]
    controller.step(dataclasses.replace(following, entropy=bad, active_fraction=math.nan, authority=math.nan))
    after = controller.state_dict()
    assert after["bad_steps"] == 1
    assert controller.coefficients() == coefficients
    bookkeeping = {"bad_steps", "executed", "unmeasured"}
    assert {key: after[key] for key in after.keys() - bookkeeping} == {key: before[key] for key in before.keys() - bookkeeping}


@pytest.mark.parametrize("kind", ["entropic", "aent", "entropic+aent", "aec", "none"])
def test_too_many_bad_measurements_end_the_run(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    plant = SimulatedPlant(empty_updates=frozenset({3, 4, *range(10, 99)}))
    controller = make(kind=kind, max_bad_steps=4)
    told: list[Measurement] = []

    def remember(measured: Measurement) -> Measurement:
        told.append(measured)
        return measured

    with caplog.at_level(logging.WARNING), pytest.raises(NonFiniteEntropyError, match="4 updates in a row"):
        simulate(controller, plant, 99, told=remember)
    assert len(told) == 14
    assert len([entry for entry in caplog.records if "output held" in entry.message]) == (2 + 3) * (1 + ("+" in kind))


def test_missing_batches_do_not_spoil_the_estimate() -> None:
    """Updates between two measurements are accounted for, whatever was lost between them."""

    def estimate(lost: frozenset[int]) -> tuple[float, float]:
        controller = Steering(ControlConfig(target_entropy=0.9), 0.9)
        plant = SimulatedPlant(noise=1e-5)
        number = itertools.count()
        simulate(
            controller,
            plant,
            60,
            told=lambda measured: dataclasses.replace(measured, entropy=math.nan) if next(number) in lost else measured,
        )
        return controller.plant.estimate().gain, controller.plant.estimate().drift

    for lost in (frozenset[int](), frozenset({2, 6, 7, 9}), frozenset({0, 1, 2, 30, 31})):
        assert estimate(lost) == pytest.approx((-0.01, -0.003), rel=0.02)


# -- phases ---------------------------------------------------------------------------------------------------------


@given(st.sampled_from(list(Phase)), st.floats(0, 1), st.floats(0, 0.3), st.integers(0, 20))
@repeatable
def test_the_next_phase(phase: Phase, trust: float, bonus: float, saturated: int) -> None:
    following = next_phase(phase, trust=trust, bonus=bonus, saturated_updates=saturated)
    assert (following is Phase.EXHAUSTED) == (saturated >= 10)
    if saturated < 10:
        assert following is not Phase.BONUS or trust < 0.75
        assert following is Phase.BONUS or trust >= 0.5
        if following is not Phase.BONUS:
            assert (following is Phase.SHARED) == (bonus > 0)
