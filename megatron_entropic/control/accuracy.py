"""Accuracy of entropy control that a run's batch allows: the controller against simulated policies that are as noisy as that batch."""

import dataclasses
import logging
import math
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from megatron_entropic.config import ControlConfig
from megatron_entropic.control import steering
from megatron_entropic.control.simulation import SimulatedPlant, simulate
from megatron_entropic.control.steering import Steering

BAND = 0.05
"""Half-width of the band around the target, as a fraction of it, inside which the entropy counts as settled."""
DRIFT_SHARE = 0.25
"""Drift of the simulated policy towards less entropy, in units of its gain: on SmolLM2 0.25 to 0.4."""
WALK_SHARE = 0.05
"""Process noise of its updates (standard deviation), in the same unit."""
RESPONSE_NOISE = 0.001
"""Standard deviation of the response's noise; measured on SmolLM2, a quarter of 96 samples: 0.0005."""
CONTEXT_SCALE = 2.5
"""Change of the entropy of fresh samples over that of the same tokens; measured on SmolLM2: 2.55 +- 0.10."""
MOMENTUM = 0.9


@dataclass(frozen=True)
class Accuracy:
    """Entropies are fractions of the target; updates are counted from 1."""

    noise: float
    """Standard deviation of one mini-batch's measurement."""
    tracking: float
    """Of the entropy itself around the target in the last half of the updates (root mean square)."""
    mean_error: float
    """Of the mean of that half (root mean square over the simulated runs)."""
    settled: int | None
    """Update from which on the entropy, smoothed over five updates, stays within BAND in half of the runs; None: never."""


def expected_accuracy(
    control: ControlConfig, *, noise: float, gain: float, updates: int, mini_batches: int = 1, runs: int = 8
) -> Accuracy:
    """Simulated, seeded.

    Args:
        control: of a kind that steers, with gains=auto (others are in 1/nat). Its target is taken relative to the start, as 1.0
            where it is in nats.
        noise: standard deviation of one mini-batch's measured entropy, relative to the entropy at the start.
        gain: change of the entropy per update at alpha 1, likewise, once Adam's momentum has built up.
        updates: optimizer updates of a run, at least 10.
    """
    target = control.target_entropy if control.target_unit == "initial" else 1.0
    relative = dataclasses.replace(control, target_unit="initial", target_entropy=target, target_points=())
    plant = SimulatedPlant(
        drift=-DRIFT_SHARE * gain,
        gain=-gain,
        bonus_gain=15 * gain,
        walk=WALK_SHARE * gain,
        momentum=MOMENTUM,
        noise=noise,
        clamped_share=1.0,  # whichever of the two is steered by
        response_noise=RESPONSE_NOISE if control.response_share else math.nan,
        context_scale=CONTEXT_SCALE,
    )
    with _quiet():
        errors = [_errors(relative, plant, updates, mini_batches, seed) for seed in range(runs)]
    late = [error[updates // 2 :] for error in errors]
    settled = sorted(_settled(error) for error in errors)[runs // 2]
    return Accuracy(
        noise=noise / target,
        tracking=math.sqrt(statistics.fmean(value**2 for error in late for value in error)),
        mean_error=math.sqrt(statistics.fmean(statistics.fmean(error) ** 2 for error in late)),
        settled=None if settled > updates else settled,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Mutes the log of simulated controllers' phases."""
    log = logging.getLogger(steering.__name__)
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def _errors(control: ControlConfig, plant: SimulatedPlant, updates: int, mini_batches: int, seed: int) -> list[float]:
    """Of the entropy before each update, relative to the target."""
    moments = simulate(Steering(control, plant.momentum), plant, updates, mini_batches, seed=seed)
    target = moments[-1].report["target_entropy"]
    return [moment.entropy / target - 1 for moment in moments]


def _settled(errors: Sequence[float]) -> int:
    """The update from which on the mean of five errors stays inside BAND; one more than there are when it does not at the end."""
    last = max((k for k in range(len(errors)) if abs(statistics.fmean(errors[max(0, k - 4) : k + 1])) > BAND), default=-1)
    return last + 2
