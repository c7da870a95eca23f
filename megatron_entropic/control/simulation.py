"""A closed loop without a model: any controller against a simulated policy whose entropy answers to its coefficients.

One optimizer update of the simulated policy, with the learning rate s_k relative to its peak:

    u_k     = u_{k-1} + (1 - beta1) / (1 - beta1^k) (push_k - u_{k-1})        Adam's bias-corrected moving average
    push_k  = gain authority alpha + bonus_gain bonus                         of the coefficients `delay` updates ago
    H_{k+1} = clip(H_k + s_k (drift + u_k) + walk, 0, ceiling)

and a mini-batch measures H_k + noise. `authority` is alpha's, min(1, active_fraction / full_authority). With the defaults
this is the model that plant.py estimates; the other settings are ways in which a run differs from it.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from megatron_entropic.config import ControlConfig
from megatron_entropic.control.coefficients import Coefficients
from megatron_entropic.control.controller import Controller
from megatron_entropic.control.handoff import BONUS_UNIT
from megatron_entropic.control.kinds import measures_first
from megatron_entropic.control.measurement import Measurement


@dataclass(frozen=True)
class SimulatedPlant:
    """Parameters of a simulated policy. Entropies in nats; drift, gains and walk per update at the peak learning rate.

    Response:
        entropy, ceiling: at the start; the largest possible, log V.
        drift, gain: what an update does on its own, and per unit of alpha.
        bonus_gain: per unit of the bonus.
        momentum: Adam's beta1.
        delay: further updates until a coefficient acts.
        walk: standard deviation of what an update does unexplained.
        gain_trend, gain_walk: the gain's logarithm grows by the trend in one update, and wanders with the walk's deviation.
    Measurement:
        noise: standard deviation of a mini-batch's measurement.
        noise_correlation: of the noise of neighbouring mini-batches.
        clamped_share: clamped entropy / entropy.
        outliers: fraction of mini-batches whose noise is five times as large (heavy tails).
    Response on the same tokens (`Measurement.response`):
        response_noise: standard deviation of its noise; NaN: it is not measured.
        context_scale, context_bias: the entropy of fresh samples changes by context_scale x response + context_bias.
    Authority:
        active_fraction, active_decay: fraction of tokens with an advantage, active_fraction exp(-k / active_decay); 0 is no decay.
        active_returns: update from which on it is active_fraction again; 0 is never.
        full_authority: the fraction from which on alpha has its whole effect.
        unit_error: factor by which the measured authorities overestimate the bonus that replaces one unit of alpha.
    Learning rate: linear over warmup_updates, then linear to 0 at update decay_until (0 is constant).
    empty_updates: mini-batches, counted from 0, without one response token: nothing measured, nothing updated.
    """

    entropy: float = 1.0
    ceiling: float = math.log(152_064)
    drift: float = -0.003
    gain: float = -0.01
    bonus_gain: float = 0.3
    momentum: float = 0.9
    delay: int = 0
    walk: float = 0.0
    gain_trend: float = 0.0
    gain_walk: float = 0.0
    noise: float = 0.005
    noise_correlation: float = 0.0
    clamped_share: float = 0.9
    outliers: float = 0.0
    response_noise: float = math.nan
    context_scale: float = 1.0
    context_bias: float = 0.0
    active_fraction: float = 0.5
    active_decay: float = 0.0
    active_returns: int = 0
    full_authority: float = 0.05
    unit_error: float = 1.0
    warmup_updates: int = 0
    decay_until: int = 0
    empty_updates: frozenset[int] = frozenset()

    def learning_rate(self, update: int) -> float:
        """Of update number `update` (from 0), relative to the peak."""
        rate = min(1.0, (update + 1) / (self.warmup_updates + 1))
        if self.decay_until:
            rate *= min(1.0, max(0.0, (self.decay_until - update) / max(1, self.decay_until - self.warmup_updates)))
        return rate

    def active(self, update: int) -> float:
        """Fraction of tokens with an advantage after `update` updates."""
        fading = self.active_decay and not 0 < self.active_returns <= update
        return self.active_fraction * (math.exp(-update / self.active_decay) if fading else 1.0)


class SimulatedPolicy:
    """The parts of policy.engine.Policy that entropy control meets: `start_batch` is its `prepare`, `update` its `update`.

    Pure Python and seeded: the same plant, seed and coefficients give the same numbers.
    """

    def __init__(self, plant: SimulatedPlant, seed: int = 0, mini_batches: int = 1) -> None:
        self.plant = plant
        self.entropy = plant.entropy
        self.updates = 0
        self.mini_batches_seen = 0
        self._mini_batches = mini_batches
        self._random = random.Random(seed)
        self._gain = plant.gain
        self._average = 0.0
        self._noise = self._random.gauss(0, plant.noise)
        self._batch_noise: list[float] = []
        self._pending = [0.0] * plant.delay
        self._response_random = random.Random(seed + 1)
        self._response = math.nan

    def start_batch(self) -> Measurement:
        """A new batch of rollouts, measured as a whole. Its noise is the mean of that of its mini-batches."""
        self._batch_noise = [self._next_noise() for _ in range(self._mini_batches)]
        return self._measurement(self.updates, self.entropy, sum(self._batch_noise) / self._mini_batches)

    def update(self, coefficients: Coefficients) -> Measurement:
        """An optimizer update on the batch's next mini-batch; measured before the update."""
        noise, version, before = self._batch_noise.pop(0), self.updates, self.entropy
        self._response = math.nan
        if self.mini_batches_seen in self.plant.empty_updates:
            noise = math.nan
        else:
            self._move(coefficients)
        self.mini_batches_seen += 1
        return self._measurement(version, before, noise)

    def _move(self, coefficients: Coefficients) -> None:
        plant = self.plant
        authority = min(1.0, plant.active(self.updates) / plant.full_authority)
        self._pending.append(
            self._gain * authority * coefficients.alpha + plant.bonus_gain * (coefficients.bonus + coefficients.entropy_bonus)
        )
        learning_rate = plant.learning_rate(self.updates)
        self.updates += 1
        self._average += (1 - plant.momentum) / (1 - plant.momentum**self.updates) * (self._pending.pop(0) - self._average)
        step = learning_rate * (plant.drift + self._average) + self._random.gauss(0, plant.walk)
        self._response = (step - learning_rate * plant.context_bias) / plant.context_scale
        self._response += self._response_random.gauss(0, plant.response_noise)
        self.entropy = min(max(self.entropy + step, 0.0), plant.ceiling)
        self._gain *= math.exp(plant.gain_trend + self._random.gauss(0, plant.gain_walk))

    def _next_noise(self) -> float:
        correlation = self.plant.noise_correlation
        fresh = self._random.gauss(0, self.plant.noise)
        if self.plant.outliers and self._random.random() < self.plant.outliers:
            fresh *= 5
        self._noise = correlation * self._noise + math.sqrt(1 - correlation**2) * fresh
        return self._noise

    def _measurement(self, version: int, entropy: float, noise: float) -> Measurement:
        plant, measured = self.plant, entropy + noise
        active = plant.active(version)
        unit = abs(self._gain) / plant.bonus_gain * plant.unit_error if plant.bonus_gain else 1.0
        return Measurement(
            entropy=measured,
            clamped_entropy=plant.clamped_share * measured,
            version=version,
            executed=self.updates,
            learning_rate=plant.learning_rate(self.updates),
            response=self._response if version < self.updates else math.nan,
            active_fraction=active if math.isfinite(noise) else math.nan,
            authority=unit / BONUS_UNIT * active,
            bonus_authority=1.0,
        )


@dataclass(frozen=True)
class Moment:
    """One update of a simulated run: the true entropy before it, what it measured, applied and what the controller reported."""

    entropy: float
    measurement: Measurement
    coefficients: Coefficients
    report: dict[str, float]


def simulate(
    controller: Controller,
    plant: SimulatedPlant,
    updates: int,
    mini_batches: int = 1,
    *,
    seed: int = 0,
    fresh_measurement: bool = False,
    told: Callable[[Measurement], Measurement] = lambda measurement: measurement,
) -> list[Moment]:
    """Drives a controller through `updates` mini-batches in the order of `trainer.update_policy`.

    Args:
        mini_batches: per batch of rollouts. With one the controller sees the forward pass of each update; with several a pass
            over the batch before the first, and then the forward passes of all but the last.
        fresh_measurement: that pass also with one mini-batch per batch (control.fresh_measurement, stale rollouts).
        told: changes a measurement on its way to the controller, such as a user's requested target, or a fault.
    Raises:
        NonFiniteEntropyError: as the controller.
    """
    policy = SimulatedPolicy(plant, seed, mini_batches)
    prepared = measures_first(ControlConfig(fresh_measurement=fresh_measurement), mini_batches=mini_batches, max_staleness=0)
    history: list[Moment] = []
    while len(history) < updates:
        batch = policy.start_batch()
        if prepared:
            controller.step(told(batch))
        for number in range(1, mini_batches + 1):
            entropy, coefficients, report = policy.entropy, controller.coefficients(), controller.report()
            measurement = policy.update(coefficients)
            history.append(Moment(entropy, measurement, coefficients, report))
            if not prepared or number < mini_batches:
                controller.step(told(measurement))
    return history
