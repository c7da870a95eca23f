"""How closely the entropy will be held: what the samples of a step allow."""

import math
from collections.abc import Iterator

from megatron_entropic.config import Config
from megatron_entropic.control.accuracy import BAND, expected_accuracy
from megatron_entropic.planning.cluster import Assumptions

SIMULATED_UPDATES = 100
"""At most, so that a plan takes a second or two."""

UNREACHED = 0.1
"""Share of the target by which the mean of the last half is off where the run ends on its way."""


def entropy_lines(cfg: Config, assumed: Assumptions) -> Iterator[str]:
    """Noise of a step's measured entropy and, where it is steered, what the controller makes of that in simulation."""
    samples = cfg.batch.prompts_per_step * cfg.batch.samples_per_prompt
    noise = assumed.sample_noise / math.sqrt(samples)
    of_five = _percent(noise / math.sqrt(5))
    yield f"Entropy: {samples} samples measure it to {_percent(noise)} in a step (standard deviation), to {of_five} in five"
    if not cfg.control.steered or cfg.control.gains != "auto":
        return
    mini_batches = cfg.batch.mini_batches
    updates = max(10, min(SIMULATED_UPDATES, cfg.trainer.steps * mini_batches))
    accuracy = expected_accuracy(
        cfg.control, noise=noise * math.sqrt(mini_batches), gain=assumed.entropy_gain, updates=updates, mini_batches=mini_batches
    )
    if accuracy.mean_error > UNREACHED:
        yield f"  simulated, {updates} updates: too few to reach the target, {_percent(accuracy.mean_error)} off in the last half"
        return
    when = f"from update {accuracy.settled} on" if accuracy.settled else f"not within {updates} updates"
    yield (
        f"  simulated, {updates} updates: held to {_percent(accuracy.tracking)} in the last half, its mean to "
        f"{_percent(accuracy.mean_error)}; within {BAND:.0%} of the target {when}"
    )


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.1 else f"{100 * share:.2g}%"
