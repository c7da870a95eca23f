"""An error that stays moves alpha, whatever the estimate says; and the correction does not make the loop swing."""

import itertools
import json
import math
from dataclasses import replace
from typing import Any

import pytest

from megatron_entropic.config import ControlConfig
from megatron_entropic.control.persistence import RAMP, Persistence
from megatron_entropic.control.plant import PlantEstimate
from megatron_entropic.control.simulation import SimulatedPlant, simulate
from megatron_entropic.control.steering import Steering

QUIET = {"noise": 0.01, "setpoint": 1.0}


def test_an_error_that_stays_reaches_twice_the_limit_in_time() -> None:
    persistence = Persistence(limit=1.0, patience=6)
    course = [persistence.step(-0.1, -0.1, **QUIET) for _ in range(3 * 6 + 2 * RAMP)]
    assert course[10] == 0.0
    assert course[-1] == -2.0
    assert all(later <= earlier for earlier, later in itertools.pairwise(course))


@pytest.mark.parametrize(
    "errors",
    [
        [0.1 * 0.9**k for k in range(80)],  # on its way
        [0.1 if k % 8 < 4 else -0.1 for k in range(80)],  # changes its sign
        [0.009] * 80,  # below what matters
    ],
    ids=["shrinking", "alternating", "small"],
)
def test_no_correction_without_an_error_that_stays(errors: list[float]) -> None:
    persistence = Persistence(limit=1.0, patience=6)
    assert all(persistence.step(error, error, **QUIET) == 0.0 for error in errors)


def test_noise_alone_is_no_reason() -> None:
    persistence = Persistence(limit=1.0, patience=6)
    assert all(persistence.step(0.05, 0.05, noise=0.08, setpoint=1.0) == 0.0 for _ in range(60))


def test_the_correction_goes_away_when_the_error_has_turned() -> None:
    persistence = Persistence(limit=1.0, patience=6)
    for _ in range(40):
        persistence.step(0.1, 0.1, **QUIET)
    assert persistence.correction == 2.0
    course = [persistence.step(-0.001, -0.001, **QUIET) for _ in range(10)]
    assert course[-1] < 0.1


def test_the_state_continues() -> None:
    first, second = Persistence(1.0, 6), Persistence(1.0, 6)
    for update in range(17):
        first.step(0.1 + 0.01 * math.sin(update), 0.1, **QUIET)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert [first.step(0.1, 0.1, **QUIET) for _ in range(30)] == [second.step(0.1, 0.1, **QUIET) for _ in range(30)]


# -- inside the loop, with an estimate that is wrong and sure of itself ----------------------------------------------


def blind(plant: SimulatedPlant, factor: float, monkeypatch: pytest.MonkeyPatch, **control: Any) -> Steering:
    """A controller that takes the gain for `factor` times what it is and knows nothing of the drift, whatever it measures."""
    controller = Steering(ControlConfig(**({"target_entropy": 1.0} | control)), plant.momentum)
    wrong = PlantEstimate(drift=0.0, gain=factor * plant.gain, drift_error=1e-6, gain_error=1e-3 * abs(plant.gain), noise=plant.noise)
    monkeypatch.setattr(controller.plant, "estimate", lambda: wrong)
    return controller


@pytest.mark.parametrize("factor", [3.0, 10.0, 100.0])
@pytest.mark.parametrize("noise", [0.002, 0.03])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_alpha_reaches_its_limit_when_the_gain_is_overestimated(
    factor: float, noise: float, momentum: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The target cannot be reached, so the error stays: at the latest after 5 patience + 2 RAMP updates alpha is at its limit."""
    plant = SimulatedPlant(entropy=0.8, gain=-0.0001, drift=0.0, noise=noise, momentum=momentum)
    controller = blind(plant, factor, monkeypatch, handoff=False, soft_setpoint=False)
    in_time = 5 * controller.persistence.patience + 2 * RAMP
    history = simulate(controller, plant, in_time + 60, seed=1)
    at_limit = [update for update, moment in enumerate(history) if moment.coefficients.alpha == -1.0]
    assert at_limit
    assert at_limit[0] <= in_time


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0, 10.0])
@pytest.mark.parametrize("gain", [-0.003, -0.01, -0.02])
@pytest.mark.parametrize("noise", [0.003, 0.03])
def test_a_wrong_gain_does_not_make_the_loop_swing(factor: float, gain: float, noise: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """From half of the gain to ten times it, the drift unknown: within what 30 updates at the limit move, and 5 noises."""
    plant = replace(SimulatedPlant(momentum=0.9), gain=gain, drift=0.3 * gain, noise=noise)
    history = simulate(blind(plant, factor, monkeypatch, handoff=False), plant, 400, seed=2)
    swing = max(abs(moment.entropy - 1.0) for moment in history[200:])
    assert swing < 30 * abs(gain) + 5 * noise
