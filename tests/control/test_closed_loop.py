"""EntroPIC's steering against simulated policies: it holds targets, stays stable, does not wind up, and hands over smoothly."""

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_entropic.config import ControlConfig
from megatron_entropic.control.handoff import Phase
from megatron_entropic.control.measurement import Measurement
from megatron_entropic.control.simulation import Moment, SimulatedPlant, simulate
from megatron_entropic.control.steering import Steering

MOMENTA = (0.0, 0.5, 0.9, 0.95)
repeatable = settings(derandomize=True, database=None, deadline=None, max_examples=40)


def steering(plant: SimulatedPlant, **control: Any) -> Steering:
    return Steering(ControlConfig(**control), plant.momentum)


def phases(history: Sequence[Moment]) -> list[Phase]:
    return [moment.coefficients.phase for moment in history]


def spread(entropies: Sequence[float], target: float) -> float:
    """Root mean square distance from the target."""
    return math.sqrt(statistics.fmean((entropy - target) ** 2 for entropy in entropies))


def asking(target: float, at: int) -> Callable[[Measurement], Measurement]:
    """A user who asks for a target after `at` updates. The number repeats with every later measurement, which changes nothing."""
    return lambda measured: replace(measured, requested_target=target) if measured.executed >= at else measured


@st.composite
def identifiable(draw: st.DrawFn) -> SimulatedPlant:
    """Plants as seen in practice; alpha's limit of 1 can always balance the drift."""
    gain = -draw(st.floats(0.003, 0.02))
    return SimulatedPlant(
        gain=gain,
        drift=max(-draw(st.floats(0.001, 0.005)), 0.7 * gain),
        noise=draw(st.floats(0.003, 0.015)),
        noise_correlation=draw(st.sampled_from((0.0, 0.5))),
        momentum=draw(st.sampled_from(MOMENTA)),
    )


seeds, batches = st.integers(0, 10_000), st.sampled_from((1, 2, 4))


# -- holding the target -------------------------------------------------------------------------------------------


@given(identifiable(), st.floats(0.8, 1.0), batches, seeds)
@repeatable
def test_auto_gains_hold_the_target(plant: SimulatedPlant, target: float, mini_batches: int, seed: int) -> None:
    history = simulate(steering(plant, target_entropy=target), plant, 400, mini_batches, seed=seed)
    last_half = [moment.entropy for moment in history[200:]]
    assert statistics.fmean(last_half) == pytest.approx(target, rel=0.02)
    assert spread(last_half, target) < 0.04 * target


def test_without_control_these_plants_leave_the_target() -> None:
    plant = SimulatedPlant()
    history = simulate(steering(plant, kp=0.0, ki=0.0, gains="fixed", target_entropy=1.0), plant, 400)
    assert history[-1].entropy == pytest.approx(0.0, abs=0.01)


@pytest.mark.parametrize("change", [{"gain_trend": 0.003}, {"gain_trend": -0.003}, {"gain_walk": 0.03}, {"walk": 0.002}, {"delay": 2}])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_holds_plants_that_are_not_the_model(change: dict[str, Any], momentum: float) -> None:
    plant = SimulatedPlant(momentum=momentum, **change)
    history = simulate(steering(plant, target_entropy=0.9), plant, 400, seed=3)
    assert statistics.fmean(moment.entropy for moment in history[200:]) == pytest.approx(0.9, rel=0.02)


def test_holds_through_warm_up_and_decay_of_the_learning_rate() -> None:
    plant = SimulatedPlant(warmup_updates=40, decay_until=500)
    history = simulate(steering(plant, target_entropy=0.9), plant, 450, seed=1)
    assert statistics.fmean(moment.entropy for moment in history[200:]) == pytest.approx(0.9, rel=0.02)


@pytest.mark.parametrize("gain", [-1e-4, -3e-5])
@pytest.mark.parametrize("seed", range(4))
def test_holds_a_very_large_model(gain: float, seed: int) -> None:
    """Learning rate 1e-6: one update moves the entropy by far less than the noise of its measurement."""
    plant = SimulatedPlant(entropy=0.3, gain=gain, drift=0.5 * gain, noise=1e-3, bonus_gain=-gain * 30)
    history = simulate(steering(plant, target_entropy=1.0, target_unit="initial"), plant, 1200, seed=seed)
    entropies = [moment.entropy for moment in history[600:]]
    assert statistics.fmean(entropies) == pytest.approx(0.3, rel=0.02)
    assert 0.3 + 1200 * plant.drift < min(entropies) - 3e-3  # where GRPO would be


# -- stability ------------------------------------------------------------------------------------------------------


@given(
    st.sampled_from((-1.0, 1.0)),
    st.floats(math.log(1e-4), math.log(0.6)),
    st.floats(-0.01, 0.01),
    st.floats(0.0, 0.05),
    st.sampled_from(MOMENTA),
    st.integers(0, 3),
    batches,
    seeds,
    st.sampled_from(("conditional", "back_calculation", "off")),
)
@repeatable
def test_nothing_leaves_its_limits_on_any_plant(
    sign: float,
    log_gain: float,
    drift: float,
    noise: float,
    momentum: float,
    delay: int,
    mini_batches: int,
    seed: int,
    anti_windup: str,
) -> None:
    """Thirty times stronger or weaker, the wrong sign, delayed: bounded coefficients, finite numbers, no error."""
    plant = SimulatedPlant(gain=sign * math.exp(log_gain), drift=drift, noise=noise, momentum=momentum, delay=delay)
    controller = steering(plant, target_entropy=0.9, anti_windup=anti_windup, alpha_limit=0.8)
    for moment in simulate(controller, plant, 200, mini_batches, seed=seed):
        assert abs(moment.coefficients.alpha) <= 0.8
        assert 0 <= moment.coefficients.bonus <= controller.cfg.handoff_coefficient_max
        assert all(math.isfinite(value) for value in moment.report.values())
        assert 0 <= moment.entropy <= plant.ceiling


@pytest.mark.parametrize("gain", [-0.6, -0.3, -0.1, -0.01, -0.003])
@pytest.mark.parametrize("momentum", MOMENTA)
@pytest.mark.parametrize("mini_batches", [1, 4])
def test_oscillations_do_not_grow(gain: float, momentum: float, mini_batches: int) -> None:
    """The last quarter is no wider than the third, up to what the noise itself moves."""
    plant = SimulatedPlant(gain=gain, drift=-0.002, momentum=momentum)
    history = simulate(steering(plant, target_entropy=0.9), plant, 400, mini_batches)
    third, fourth = ([moment.entropy for moment in history[start : start + 100]] for start in (200, 300))
    assert spread(fourth, 0.9) < 1.5 * spread(third, 0.9) + plant.noise
    assert spread(fourth, 0.9) < 4 * plant.noise


# -- windup ---------------------------------------------------------------------------------------------------------


def saturated_after_turn(anti_windup: str, gains: str) -> int:
    """How long alpha stays at its limit after a target out of reach was exchanged for one on the other side of the entropy."""
    plant = SimulatedPlant(drift=-0.012, gain=-0.01, noise=0.002, momentum=0.0, ceiling=3.0)
    controller = steering(
        plant, target_entropy=2.0, anti_windup=anti_windup, gains=gains, kp=20.0, ki=1.0, handoff=False, soft_setpoint=False
    )
    history = simulate(controller, plant, 120, told=asking(0.2, at=60))
    assert all(moment.coefficients.alpha == -1.0 for moment in history[30:60])
    assert all(moment.entropy > 0.21 for moment in history[50:62])
    return next((k for k, moment in enumerate(history[60:]) if moment.coefficients.alpha > -1.0), 60)


@pytest.mark.parametrize("gains", ["auto", "fixed"])
@pytest.mark.parametrize("anti_windup", ["conditional", "back_calculation"])
def test_no_windup(anti_windup: str, gains: str) -> None:
    assert saturated_after_turn(anti_windup, gains) <= 3


def test_windup_without_protection() -> None:
    assert saturated_after_turn("off", "fixed") > 10


# -- new targets ----------------------------------------------------------------------------------------------------


@given(identifiable(), st.sampled_from((-0.15, 0.15)), batches, seeds)
@repeatable
def test_follows_a_new_target_without_overshoot_or_jump(plant: SimulatedPlant, step: float, mini_batches: int, seed: int) -> None:
    plant = replace(plant, drift=max(plant.drift, 0.4 * plant.gain), noise_correlation=0.0)
    controller = steering(plant, target_entropy=1.0)
    history = simulate(controller, plant, 500, mini_batches, seed=seed, told=asking(1.0 + step, at=200))
    beyond = max((moment.entropy - 1.0 - step) / step for moment in history[200:])
    noise_alone = 3 * spread([moment.entropy for moment in history[400:]], 1.0 + step)
    assert beyond < max(0.3, noise_alone / 0.15)
    assert statistics.fmean(moment.entropy for moment in history[400:]) == pytest.approx(1.0 + step, rel=0.02)
    # Between two updates alpha moves by kp times the change of the noise, and by the setpoint's rate; the new target adds nothing.
    for before, after in itertools.pairwise(history[195:215]):
        kp = max(before.report["kp"], after.report["kp"])
        allowed = 7 * kp * plant.noise + 0.5 / controller.tuning.time_constant
        assert abs(after.coefficients.alpha - before.coefficients.alpha) < allowed


@pytest.mark.parametrize("mini_batches", [1, 4])
def test_a_hard_setpoint_makes_alpha_jump(mini_batches: int) -> None:
    plant = SimulatedPlant(noise=0.001, momentum=0.0, ceiling=3.0)

    def jump(soft: bool) -> float:
        controller = steering(plant, target_entropy=1.0, soft_setpoint=soft)
        history = simulate(controller, plant, 208, mini_batches, told=asking(1.5, at=200))
        alphas = [moment.coefficients.alpha for moment in history[196:]]
        return max(abs(after - before) for before, after in itertools.pairwise(alphas))

    assert jump(soft=False) > 0.55
    assert jump(soft=True) < 0.45


# -- out of reach, and handing over ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "limit"), [(5.0, -1.0), (-0.5, 1.0)])
@pytest.mark.parametrize("handoff", [True, False])
@pytest.mark.parametrize("gains", ["auto", "fixed"])
def test_a_target_out_of_reach_exhausts(target: float, limit: float, handoff: bool, gains: str) -> None:
    """Above log V or below 0: everything goes to its limit, the log says so once, and the run continues."""
    plant = SimulatedPlant(entropy=0.3, ceiling=0.6)
    controller = steering(plant, target_entropy=target, handoff=handoff, gains=gains, kp=5.0, ki=0.5)
    history = simulate(controller, plant, 600)
    assert phases(history)[-1] is Phase.EXHAUSTED
    assert history[-1].coefficients.alpha == limit
    if handoff and limit < 0:
        assert history[-1].coefficients.bonus == controller.cfg.handoff_coefficient_max


FADING = SimulatedPlant(drift=-0.004, active_decay=60.0, active_returns=350)


@pytest.mark.parametrize("unit_error", [1 / 3, 1.0, 3.0])
@pytest.mark.parametrize("mini_batches", [1, 4])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_bonus_takes_over_and_hands_back(unit_error: float, mini_batches: int, seed: int) -> None:
    """Groups become all right, alpha loses its hold, new prompts bring it back: the entropy stays, the effort does not jump."""
    plant = replace(FADING, unit_error=unit_error)
    history = simulate(steering(plant, target_entropy=0.95), plant, 500, mini_batches, seed=seed)
    assert [phases(history)[update] for update in (100, 300)] == [Phase.ALPHA, Phase.BONUS]
    assert Phase.BONUS not in phases(history)[370:]
    assert history[300].coefficients.bonus > 0.005
    assert statistics.fmean(moment.coefficients.bonus for moment in history[400:]) < 0.002
    assert spread([moment.entropy for moment in history[100:]], 0.95) < 0.02
    for before, after in itertools.pairwise(history[20:]):
        if not before.report["gains_tuned"]:
            continue  # the dither steps
        kp = max(before.report["kp"], after.report["kp"])
        assert abs(after.report["effort"] - before.report["effort"]) < 7 * kp * plant.noise + 0.1


def test_without_handoff_fading_authority_loses_the_entropy() -> None:
    history = simulate(steering(FADING, target_entropy=0.95, handoff=False), FADING, 350)
    assert history[-1].entropy < 0.8


@given(identifiable(), st.sampled_from((0.0, 40.0, 100.0)), st.floats(-0.5, 3.0), st.sampled_from((0, 12)), batches, seeds)
@repeatable
def test_phases_follow_the_diagram(
    plant: SimulatedPlant, decay: float, target: float, probe_updates: int, mini_batches: int, seed: int
) -> None:
    plant = replace(plant, active_decay=decay, active_returns=150, ceiling=2.0)
    history = simulate(steering(plant, target_entropy=target, probe_updates=probe_updates), plant, 250, mini_batches, seed=seed)
    entered = [phase for phase, _ in itertools.groupby(phases(history))]
    assert entered.count(Phase.IDLE) == (mini_batches == 1)
    assert Phase.IDLE not in entered[1:]
    assert (Phase.PROBING in entered) <= (probe_updates > 0)
    assert not any(moment.coefficients.phase is Phase.PROBING and moment.report["gains_tuned"] for moment in history)
    assert len(entered) > (mini_batches == 1)
