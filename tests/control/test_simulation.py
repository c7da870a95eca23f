"""The simulated policy: its physics, and that the loop around it is the trainer's."""

import math
import statistics
from dataclasses import dataclass, replace
from typing import Any, cast

import pytest

from megatron_entropic.config import BatchConfig, Config, ControlConfig
from megatron_entropic.control import Coefficients, Measurement, make_controller
from megatron_entropic.control.simulation import SimulatedPlant, SimulatedPolicy, simulate
from megatron_entropic.policy.batching import Batch
from megatron_entropic.policy.engine import Policy
from megatron_entropic.trainer import update_policy

QUIET = SimulatedPlant(noise=0.0, momentum=0.0, drift=0.0)


class Constant:
    """A controller that writes down what it is told."""

    def __init__(self, coefficients: Coefficients) -> None:
        self._coefficients = coefficients
        self.told: list[Measurement] = []

    def coefficients(self) -> Coefficients:
        return self._coefficients

    def step(self, measured: Measurement) -> None:
        self.told.append(measured)

    def report(self) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise NotImplementedError


def entropies(plant: SimulatedPlant, alpha: float = 0.0, bonus: float = 0.0, updates: int = 20) -> list[float]:
    return [moment.entropy for moment in simulate(Constant(Coefficients(alpha, bonus)), plant, updates)]


def test_a_quiet_plant_is_an_integrator() -> None:
    assert entropies(replace(QUIET, drift=-0.01, gain=-0.02), alpha=-1.0)[:3] == pytest.approx([1.0, 1.01, 1.02])
    assert entropies(replace(QUIET, bonus_gain=0.5), bonus=0.1)[:3] == pytest.approx([1.0, 1.05, 1.1])
    assert entropies(replace(QUIET, delay=3), alpha=-1.0)[:6] == pytest.approx([1.0, 1.0, 1.0, 1.0, 1.01, 1.02])
    assert entropies(replace(QUIET, active_fraction=0.01, gain=-0.1), alpha=-1.0)[1] == pytest.approx(1.02)


def test_momentum_delays_a_change_of_alpha() -> None:
    policy = SimulatedPolicy(replace(QUIET, momentum=0.9, gain=-0.1))
    moves = []
    for alpha in [0.0] * 100 + [-1.0] * 3:
        policy.start_batch()
        before = policy.entropy
        policy.update(Coefficients(alpha))
        moves.append(policy.entropy - before)
    assert moves[99:] == pytest.approx([0.0, 0.01, 0.019, 0.0271], rel=1e-3)


def test_entropy_stays_between_zero_and_the_ceiling() -> None:
    assert min(entropies(replace(QUIET, gain=-1.0), alpha=1.0)) == 0.0
    assert max(entropies(replace(QUIET, gain=-1.0, ceiling=3.0), alpha=-1.0)) == 3.0


def test_learning_rate_warms_up_and_decays() -> None:
    plant = SimulatedPlant(warmup_updates=3, decay_until=13)
    assert [plant.learning_rate(update) for update in (0, 1, 3, 8, 13, 20)] == pytest.approx([0.25, 0.5, 1.0, 0.5, 0.0, 0.0])
    assert entropies(replace(QUIET, warmup_updates=3, gain=-0.04), alpha=-1.0)[:3] == pytest.approx([1.0, 1.01, 1.03])


@pytest.mark.parametrize("correlation", [0.0, 0.7])
def test_noise_has_its_deviation_and_correlation(correlation: float) -> None:
    controller = Constant(Coefficients())
    simulate(controller, replace(QUIET, noise=0.1, noise_correlation=correlation), 4000)
    noise = [measured.entropy - 1.0 for measured in controller.told]
    assert statistics.pstdev(noise) == pytest.approx(0.1, rel=0.1)
    assert statistics.correlation(noise[:-1], noise[1:]) == pytest.approx(correlation, abs=0.07)


def test_an_empty_mini_batch_measures_and_moves_nothing() -> None:
    controller = Constant(Coefficients(-1.0))
    history = simulate(controller, replace(QUIET, empty_updates=frozenset({2})), 5)
    assert [moment.entropy for moment in history] == pytest.approx([1.0, 1.01, 1.02, 1.02, 1.03])
    assert [(measured.version, measured.executed) for measured in controller.told] == [(0, 1), (1, 2), (2, 2), (2, 3), (3, 4)]
    assert [math.isnan(measured.entropy) for measured in controller.told] == [False, False, True, False, False]


# -- the order of the loop ------------------------------------------------------------------------------------------


@dataclass
class Stats:
    """The trainer's view of an update."""

    measurement: Measurement


class InTrainer:
    """A simulated policy with the engine's names, on batches that are only cut into mini-batches."""

    def __init__(self, policy: SimulatedPolicy, prepares: bool) -> None:
        self._policy = policy
        self._prepares = prepares
        self._prepared = False

    def prepare(self, batch: object, requested_target: float | None) -> Measurement:
        self._prepared = True
        return self._policy.start_batch()

    def update(self, mini_batch: object, coefficients: Coefficients, requested_target: float | None) -> Stats:
        if not self._prepares:
            self._policy.start_batch()
        assert self._prepared == self._prepares
        return Stats(self._policy.update(coefficients))

    def mini_batches(self, count: int) -> list[object]:
        return [object() for _ in range(count)]


@pytest.mark.parametrize(("mini_batches", "fresh"), [(1, False), (1, True), (4, False)])
def test_the_loop_is_the_trainers(mini_batches: int, fresh: bool) -> None:
    """The same controller in trainer.update_policy ends in the same state, to the last bit."""
    control = ControlConfig(target_entropy=0.9, fresh_measurement=fresh)
    cfg = Config(control=control, batch=BatchConfig(mini_batches=mini_batches))
    simulated, trained = make_controller(cfg), make_controller(cfg)
    plant = SimulatedPlant(momentum=cfg.optimizer.beta1)
    simulate(simulated, plant, 60, mini_batches, seed=5, fresh_measurement=fresh)
    policy = InTrainer(SimulatedPolicy(plant, 5, mini_batches), prepares=fresh or mini_batches > 1)
    for _ in range(60 // mini_batches):
        list(update_policy(cfg, cast(Policy, policy), trained, cast(Batch, policy)))
    assert trained.state_dict() == simulated.state_dict()
