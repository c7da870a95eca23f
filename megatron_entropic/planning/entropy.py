"""Expected accuracy of entropy control, as the samples of a step allow."""

import math
from collections.abc import Iterator

from megatron_entropic.config import BatchConfig, ControlConfig
from megatron_entropic.control.accuracy import BAND, expected_accuracy
from megatron_entropic.control.kinds import kind_of
from megatron_entropic.planning.cluster import Assumptions

SIMULATED_UPDATES = 100
"""At most, so that a plan takes a second or two."""
FEWEST_UPDATES = 10
"""Fewer say nothing of a controller."""

UNREACHED = 0.1
"""Fraction of the target by which the mean of the last half is off where the run ends on its way."""


def entropy_lines(control: ControlConfig, batch: BatchConfig, steps: int, assumed: Assumptions) -> Iterator[str]:
    """Noise of a step's measured entropy and, where it is steered, what the controller makes of that in simulation.

    `steps`: of the run.
    """
    samples = batch.prompts_per_step * batch.samples_per_prompt
    noise = assumed.sample_noise / math.sqrt(samples)
    of_five = _percent(noise / math.sqrt(5))
    yield f"Entropy: {samples} samples measure it to {_percent(noise)} in a step (standard deviation), to {of_five} in five"
    updates = min(SIMULATED_UPDATES, steps * batch.mini_batches)
    simulated = kind_of(control).steered and control.gains == "auto" and control.target_entropy > 0
    if not simulated or noise > 1 or updates < FEWEST_UPDATES:
        return
    accuracy = expected_accuracy(
        control,
        noise=noise * math.sqrt(batch.mini_batches),
        gain=assumed.entropy_gain,
        updates=updates,
        mini_batches=batch.mini_batches,
    )
    start = "the target" if control.target_unit == "nats" else "its first measurement"
    schedule = ", before its schedule" if control.target_points else ""
    told = f"  simulated, from {start} on{schedule}, {updates} updates: "
    if accuracy.mean_error > UNREACHED:
        yield told + f"the target is not reached, {_percent(accuracy.mean_error)} off in the last half"
        return
    settled = f"from update {accuracy.settled} on" if accuracy.settled else "not yet at the end"
    yield (
        told + f"held to {_percent(accuracy.tracking)} in the last half, its mean to {_percent(accuracy.mean_error)}; "
        f"within {BAND:.0%} of the target {settled}"
    )


def _percent(fraction: float) -> str:
    return f"{fraction:.0%}" if fraction >= 0.1 else f"{100 * fraction:.2g}%"
