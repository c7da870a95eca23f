"""The estimate of the plant: it finds the true drift and gain, also inside the closed loop, where a plain regression does not."""

import itertools
import statistics
from dataclasses import replace

import pytest

from megatron_entropic.config import ControlConfig
from megatron_entropic.control import Coefficients
from megatron_entropic.control import plant as states
from megatron_entropic.control.plant import Plant, PlantEstimate
from megatron_entropic.control.simulation import Moment, SimulatedPlant, SimulatedPolicy, simulate
from megatron_entropic.control.steering import Steering

GAIN, DRIFT = -0.01, -0.003
SEEDS = range(25)


def true_plant(momentum: float, walk: float = 0.0) -> SimulatedPlant:
    return SimulatedPlant(gain=GAIN, drift=DRIFT, noise=0.006, momentum=momentum, walk=walk)


def open_loop(true: SimulatedPlant, seed: int, updates: int = 150) -> PlantEstimate:
    """Alternating alpha for 24 updates, then constant: nothing answers to the noise."""
    estimate, policy = Plant(true.momentum), SimulatedPolicy(true, seed)
    for update in range(updates):
        estimate.observe(policy.start_batch().entropy)
        alpha = (1.0 if update // 3 % 4 in (0, 3) else -1.0) if update < 24 else -0.3
        policy.update(Coefficients(alpha))
        estimate.advance(alpha)
    return estimate.estimate()


def closed_loop(true: SimulatedPlant, seed: int, *, mini_batches: int = 1, fresh: bool = False) -> tuple[PlantEstimate, list[Moment]]:
    controller = Steering(ControlConfig(target_entropy=0.95, handoff=False), true.momentum)
    history = simulate(controller, true, 200, mini_batches, seed=seed, fresh_measurement=fresh)
    return controller.plant.estimate(), history


def within_three_errors(estimates: list[PlantEstimate]) -> float:
    hits = [
        abs(estimate.gain - GAIN) < 3 * estimate.gain_error and abs(estimate.drift - DRIFT) < 3 * estimate.drift_error
        for estimate in estimates
    ]
    return statistics.fmean(hits)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("walk", [0.0, 0.0018])
def test_open_loop_estimates_are_right(momentum: float, walk: float) -> None:
    estimates = [open_loop(true_plant(momentum, walk), seed) for seed in SEEDS]
    assert within_three_errors(estimates) >= 0.95
    assert statistics.fmean(estimate.gain for estimate in estimates) == pytest.approx(GAIN, rel=0.08)
    assert statistics.fmean(estimate.drift for estimate in estimates) == pytest.approx(DRIFT, rel=0.2)
    assert min(estimate.confidence for estimate in estimates) > 2


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize(("mini_batches", "fresh"), [(1, False), (1, True), (4, False)])
def test_closed_loop_estimates_are_right(momentum: float, mini_batches: int, fresh: bool) -> None:
    """Within three of its own errors; on the safe side: a gain taken too large makes the loop slower."""
    estimates = [closed_loop(true_plant(momentum), seed, mini_batches=mini_batches, fresh=fresh)[0] for seed in SEEDS]
    assert within_three_errors(estimates) >= 0.95
    assert 0.9 < statistics.fmean(estimate.gain for estimate in estimates) / GAIN < 1.5
    assert min(estimate.confidence for estimate in estimates) > 2


def test_a_regression_in_the_closed_loop_is_biased() -> None:
    """alpha answers to the noise of the very measurement that the change of the entropy starts from."""

    def regression(history: list[Moment]) -> float:
        changes = [after.measurement.entropy - before.measurement.entropy for before, after in itertools.pairwise(history)]
        return statistics.linear_regression([moment.coefficients.alpha for moment in history[:-1]], changes).slope

    runs = [closed_loop(true_plant(0.0), seed, fresh=True) for seed in SEEDS]
    regressed = statistics.fmean(regression(history[20:]) for _, history in runs) / GAIN
    estimated = statistics.fmean(estimate.gain for estimate, _ in runs) / GAIN
    assert regressed > 1.8
    assert estimated < 1.35


@pytest.mark.parametrize(("gain", "sign"), [(GAIN, 1), (-GAIN, -1)])
def test_confidence_has_the_sign_of_a_working_actuator(gain: float, sign: int) -> None:
    estimates = [open_loop(replace(true_plant(0.5), gain=gain), seed, updates=24) for seed in SEEDS]
    assert all(estimate.confidence * sign > 2 for estimate in estimates)


def test_without_a_response_there_is_no_confidence() -> None:
    estimates = [open_loop(replace(true_plant(0.5), gain=0.0), seed) for seed in range(100)]
    assert statistics.fmean(abs(estimate.confidence) > 2 for estimate in estimates) < 0.1
    assert statistics.fmean(abs(estimate.confidence) > 3 for estimate in estimates) < 0.02


def test_the_noise_is_estimated() -> None:
    noises = [open_loop(true_plant(0.9), seed).noise for seed in SEEDS]
    assert statistics.fmean(noises) == pytest.approx(0.006, rel=0.15)


def test_follows_a_gain_that_drifts() -> None:
    true = replace(true_plant(0.5), gain_trend=-0.01, noise=0.002)
    estimate, _ = closed_loop(true, 0)
    assert estimate.gain / GAIN < 0.5  # the true one has fallen to 0.13 of it


@pytest.mark.parametrize("updates", [1, 3, 10, 60])
def test_coasting_is_what_momentum_still_does(updates: int) -> None:
    """With alpha where it balances the drift, the average of past alphas brings the entropy this much further.

    Also early in a run, when Adam's bias correction lets go of the past faster.
    """
    estimate, quiet = Plant(0.9), replace(true_plant(0.9), noise=1e-6)
    policy = SimulatedPolicy(quiet, 0)
    for update in range(updates):
        estimate.observe(policy.start_batch().entropy)
        alpha = 1.0 if update % 20 < 10 else -1.0
        policy.update(Coefficients(alpha))
        estimate.advance(alpha)
    if updates < 60:  # too few to know the plant from
        estimate.mean[states.DRIFT], estimate.mean[states.GAIN] = DRIFT, GAIN
    predicted, before = estimate.coasting, policy.entropy
    for _ in range(200):
        policy.start_batch()
        policy.update(Coefficients(-DRIFT / GAIN))
    assert policy.entropy - before == pytest.approx(predicted, rel=0.02)
    assert abs(predicted) > 0.015


def test_reads_the_state_of_earlier_checkpoints() -> None:
    """Level, drift and gain with a 3 x 3 covariance in units of the noise's variance."""
    earlier = {
        "level": 0.9,
        "drift": DRIFT,
        "gain": GAIN,
        "delayed_alpha": -0.2,
        "noise_variance": 4e-4,
        "predicted": 0.91,
        "measured": 0.92,
        "updates": 40,
        "observations": 41,
        "covariance": [[0.2, 0.01, 0.0], [0.01, 0.03, 0.0], [0.0, 0.0, 0.04]],
    }
    plant = Plant(0.9)
    plant.load_state_dict(earlier)
    estimate = plant.estimate()
    assert (plant.level, estimate.drift, estimate.gain) == (0.9, DRIFT, GAIN)
    assert (estimate.noise, estimate.gain_error) == pytest.approx((0.02, 0.004))
    before = plant.state_dict()
    again = Plant(0.9)
    again.load_state_dict(before)
    assert again.state_dict() == before
