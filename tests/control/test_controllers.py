"""EntroPIC and AEnt against independent float64 simulations of the authors' update rules."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_entropic.config import Config, ControlConfig
from megatron_entropic.control import (
    AEnt,
    Coefficients,
    Controller,
    EntroPIC,
    Measurement,
    NonFiniteEntropyError,
    make_controller,
)

entropies = st.lists(st.floats(-2.0, 5.0), min_size=1, max_size=60)


def released_entropic(values: list[float], target: float, kp: float, ki: float, limit: float) -> list[float]:
    """The authors' loop: alpha from the errors before this one, then the error joins them."""
    history: list[float] = []
    alphas = []
    for value in values:
        error = value - target
        alphas.append(max(-limit, min(limit, kp * error + ki * math.fsum(history))))
        history.append(error)
    return alphas


@settings(deadline=None)
@given(entropies, st.floats(-1, 1), st.floats(0, 5), st.floats(0, 0.5))
def test_entropic_is_the_released_rule_without_anti_windup(values: list[float], target: float, kp: float, ki: float) -> None:
    controller = EntroPIC(target, kp=kp, ki=ki, anti_windup=False)
    alphas = []
    for value in values:
        controller.step(value)
        alphas.append(controller.alpha)
    assert alphas == pytest.approx(released_entropic(values, target, kp, ki, 1.0), rel=1e-9, abs=1e-9)


def test_entropic_reads_the_integral_before_it_accumulates() -> None:
    controller = EntroPIC(0.5, kp=0.0, ki=1.0, alpha_limit=10.0)
    assert controller.alpha == 0.0
    controller.step(0.75)
    assert controller.alpha == 0.0
    controller.step(0.5)
    assert controller.alpha == 0.25


def test_anti_windup_bounds_the_undershoot() -> None:
    """A start far above the target: the released integral keeps alpha positive long after the entropy fell below it."""

    def steps_below_zero_alpha(anti_windup: bool) -> int:
        controller = EntroPIC(0.1, kp=1.0, ki=0.1, anti_windup=anti_windup)
        for _ in range(100):
            controller.step(3.0)
        steps = 0
        while controller.alpha > 0 and steps < 10_000:
            controller.step(0.05)
            steps += 1
        return steps

    assert steps_below_zero_alpha(anti_windup=True) <= 10
    assert steps_below_zero_alpha(anti_windup=False) > 1000


@settings(deadline=None)
@given(entropies, st.floats(0.1, 3.0))
def test_alpha_never_leaves_its_limits(values: list[float], limit: float) -> None:
    controller = EntroPIC(0.3, kp=4.0, ki=0.5, alpha_limit=limit)
    for value in values:
        controller.step(value)
        assert -limit <= controller.alpha <= limit


def test_entropic_holds_an_integrating_plant_at_its_target() -> None:
    """dH = -0.02 - 0.05 alpha: entropy drifts down unless alpha stays at -0.4, which only the integral can supply."""
    controller, entropy = EntroPIC(0.9, kp=2.0, ki=0.2), 0.9
    history = []
    for _ in range(300):
        controller.step(entropy)
        entropy += -0.02 - 0.05 * controller.alpha
        history.append(entropy)
    assert history[-1] == pytest.approx(0.9, abs=1e-3)
    assert controller.alpha == pytest.approx(-0.4, abs=1e-2)


def test_aent_is_the_released_rule() -> None:
    rng = random.Random(0)
    values = [rng.uniform(0, 0.5) for _ in range(80)]
    controller = AEnt()
    coefficient = 2e-4
    for step, value in enumerate(values):
        controller.step(value)
        if step >= 29:
            outside = min(0.0, value - 0.05) + max(0.0, value - 0.23)
            coefficient = min(max(coefficient - 1e-3 * outside, 1e-5), 3e-3)
        assert controller.coefficient == pytest.approx(coefficient, rel=1e-12)
    assert coefficient != 2e-4


@pytest.mark.parametrize("make", [lambda: EntroPIC(0.5, kp=2.0, ki=0.3), lambda: AEnt(warmup_steps=2, lr=0.1)])
def test_state_continues_to_the_last_bit(make: object) -> None:
    assert callable(make)
    values = [0.9, 0.1, 0.3, float("nan"), 0.7, 0.2, 0.02]
    whole, first, second = make(), make(), make()
    for value in values:
        whole.step(value)
    for value in values[:4]:
        first.step(value)
    second.load_state_dict(first.state_dict())
    for value in values[4:]:
        second.step(value)
    assert second.state_dict() == whole.state_dict()


def test_non_finite_measurements_hold_then_stop(caplog: pytest.LogCaptureFixture) -> None:
    controller = EntroPIC(0.5, max_bad_steps=3)
    controller.step(0.8)
    before = controller.state_dict()
    for bad in (math.nan, math.inf):
        controller.step(bad)
    assert controller.state_dict() | {"bad_steps": 0} == before
    assert len(caplog.records) == 2
    with pytest.raises(NonFiniteEntropyError, match="3 updates in a row"):
        controller.step(-math.inf)
    controller.load_state_dict(before)
    controller.step(math.nan)
    controller.step(0.6)  # a finite measurement ends the row
    assert controller.state_dict()["bad_steps"] == 0


def test_make_controller_follows_the_kind() -> None:
    def make(**control: object) -> Controller:
        return make_controller(Config(control=ControlConfig(**control)))  # type: ignore[arg-type]

    assert make(kind="none").coefficients() == Coefficients()
    assert make(kind="nsr").coefficients() == Coefficients(positive_weight=0.1)
    assert make(kind="entropy_bonus", coefficient=0.01).coefficients() == Coefficients(entropy_bonus=0.01)
    both = make(kind="entropic+aent", kp=2.0, target_entropy=0.5, coefficient=1e-3, gains="fixed", soft_setpoint=False)
    both.step(Measurement(0.75, 0.1, version=0, executed=1))
    assert both.coefficients() == Coefficients(alpha=0.5, bonus=1e-3)
