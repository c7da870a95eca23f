"""The baselines' controllers: AEC against its rule in Skywork-OR1's notation, and constant ones that notice a broken policy."""

import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_entropic.config import BatchConfig, Config, ControlConfig
from megatron_entropic.control import Coefficients, Controller, Measurement, NonFiniteEntropyError, make_controller
from megatron_entropic.control.aec import AEC

STATIC_KINDS = ("none", "nsr", "entropy_bonus", "clip_cov", "kl_cov")


def make(**control: object) -> Controller:
    # Two mini-batches: kl_cov needs an old policy.
    return make_controller(Config(control=ControlConfig(**control), batch=BatchConfig(mini_batches=2)))  # type: ignore[arg-type]


def feed(controller: Controller, values: list[float], start: int = 0) -> list[Coefficients]:
    """The coefficients after each measurement; value k is of version k, when k + 1 updates have been made."""
    found = []
    for version, value in enumerate(values, start=start):
        controller.step(Measurement(value, version=version, executed=version + 1))
        found.append(controller.coefficients())
    return found


@given(st.lists(st.floats(0, 1), max_size=80), st.floats(0, 1), st.floats(0, 0.01), st.floats(0, 0.05))
def test_aec_is_the_rule(values: list[float], target: float, step: float, start: float) -> None:
    controller = make(
        kind="aec", target_entropy=target, coefficient=start, coefficient_step=step, coefficient_min=1e-3, coefficient_max=0.02
    )
    assert controller.coefficients() == Coefficients()  # nothing is known about the entropy yet
    expected, c = [], start
    for value in values:
        expected.append(c if value <= target else 0.0)
        c += step if value < target else -step if value > target else 0.0
        c = min(max(c, 1e-3), 0.02)
    assert [found.entropy_bonus for found in feed(controller, values)] == expected
    assert controller.report() == {"target_entropy": target, "adapted_coefficient": c}


def test_aec_follows_the_schedule_and_the_user() -> None:
    """Also with the setpoint that EntroPIC would approach softly: AEC takes the target as it is."""
    controller = make(kind="aec", target_entropy=0.5, target_points=((4, 1.0),), target_unit="initial", soft_setpoint=True)
    targets = []
    for version in range(6):
        requested = 0.3 if version == 5 else None
        controller.step(Measurement(0.8, version=version, executed=version + 1, requested_target=requested))
        targets.append(controller.report()["target_entropy"])
    assert targets == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.8, 0.3])


def test_aec_holds_an_entropy_that_only_the_bonus_can_raise() -> None:
    """dH = -0.01 + 10 a: balance at a = 1e-3. The rule is a relay, so the entropy oscillates about its target."""
    controller = make(kind="aec", target_entropy=0.5, coefficient=1e-3, coefficient_step=1e-4, coefficient_max=0.01)
    entropy, history = 0.8, []
    for version in range(2000):
        controller.step(Measurement(entropy, version=version, executed=version + 1))
        entropy += -0.01 + 10 * controller.coefficients().entropy_bonus
        history.append(entropy)
    assert math.fsum(history[1000:]) / 1000 == pytest.approx(0.5, abs=0.02)


def test_aec_continues_to_the_last_bit() -> None:
    rng = random.Random(0)
    values = [rng.uniform(0, 1) if rng.random() > 0.1 else math.nan for _ in range(200)]
    settings = {"kind": "aec", "target_entropy": 0.5, "target_points": ((100, 0.7),), "coefficient_step": 3e-4, "max_bad_steps": 9}
    whole, resumed = make(**settings), make(**settings)
    expected = feed(whole, values)
    found = []
    for start in range(0, 200, 7):
        state = json.loads(json.dumps(resumed.state_dict()))
        resumed = make(**settings)
        resumed.load_state_dict(state)
        found += feed(resumed, values[start : start + 7], start)
    assert found == expected
    assert resumed.state_dict() == whole.state_dict()


def test_aec_holds_its_output_while_the_measurement_is_bad() -> None:
    controller = make(kind="aec", target_entropy=0.5, coefficient=1e-3)
    assert isinstance(controller, AEC)
    feed(controller, [0.1, 0.1])
    before = controller.state_dict()
    feed(controller, [math.nan, math.inf], start=2)
    assert controller.state_dict() == before | {"bad_steps": 2}
    feed(controller, [0.1], start=4)
    assert controller.state_dict()["bad_steps"] == 0
    assert controller.state_dict()["reference"]["updates"] == 5


@pytest.mark.parametrize("kind", [*STATIC_KINDS, "aec", "aent", "entropic", "entropic+aent"])
def test_every_kind_stops_after_too_many_bad_measurements(kind: str) -> None:
    controller = make(kind=kind, max_bad_steps=3)
    bad = [Measurement(math.nan, math.nan, version=k, executed=k + 1) for k in range(6)]
    for measured in bad[:2]:
        controller.step(measured)
    resumed = make(kind=kind, max_bad_steps=3)
    resumed.load_state_dict(json.loads(json.dumps(controller.state_dict())))
    with pytest.raises(NonFiniteEntropyError, match="3 updates in a row"):
        resumed.step(bad[2])


@pytest.mark.parametrize("kind", STATIC_KINDS)
def test_constant_kinds_stay_constant(kind: str) -> None:
    controller = make(kind=kind)
    before = controller.coefficients()
    assert feed(controller, [0.1, math.nan, 3.0]) == [before] * 3
    assert controller.report() == {}
    assert (before == Coefficients()) == (kind in ("none", "clip_cov", "kl_cov"))
