"""Bounds of the gap between the sampler's and the trainer's log-probs, above which a run warns or ends.

Both give the log-prob of the same sampled token; but for rounding they differ only by what the policy has learned since. A sampler
with other weights, positions or temperature is off by tenths of a nat on the mean token. Rounding is far below that in the mean,
while its largest value grows with the number of tokens. So both are judged, the mean much more strictly.
"""

from dataclasses import dataclass

from megatron_entropic.config import ModelConfig, RolloutConfig


@dataclass(frozen=True)
class GapBounds:
    """Limits of the largest and the mean gap of a step's response tokens, nats."""

    largest: float
    mean: float

    def exceeded(self, largest: float, mean: float) -> bool:
        """Whether one of them is above its bound, or not a number."""
        return not (largest <= self.largest and mean <= self.mean)

    def __str__(self) -> str:
        return f"{self.mean:g} in the mean, {self.largest:g} at most"


# Measured (docs/rollouts.md), in the mean and at most: float32 up to 1e-5 and 1e-4, bfloat16 up to 0.02 and 0.4.
WARN = {"float32": GapBounds(largest=0.05, mean=1e-3), "bfloat16": GapBounds(largest=3.0, mean=0.05)}
STOP = {"float32": GapBounds(largest=3.0, mean=0.01), "bfloat16": GapBounds(largest=10.0, mean=0.3)}
STALE_MEAN = 0.25
"""Allowance of the mean gap of stale rollouts for each weight version that they are behind. Their largest gap may be any."""


def warn_bounds(model: ModelConfig, rollout: RolloutConfig, step: int) -> GapBounds | None:
    """Above these a run warns at `step`; None: never."""
    if rollout.max_logprob_gap == 0:
        return None
    return _when_stale(WARN[model.dtype], _staleness(rollout, step))


def stop_bounds(model: ModelConfig, rollout: RolloutConfig, step: int) -> GapBounds | None:
    """Above these a run ends at `step`: `rollout.max_logprob_gap` or, by default, what no right sampler reaches. None: never."""
    limit = rollout.max_logprob_gap
    if limit != "auto":
        return GapBounds(largest=limit, mean=limit) if limit else None
    # A recording may be of a run that learned something else.
    return None if rollout.engine == "replay" else _when_stale(STOP[model.dtype], _staleness(rollout, step))


def likely_causes(model: ModelConfig, rollout: RolloutConfig, step: int) -> str:
    """Likely causes of a gap above its bounds under these settings."""
    causes = []
    if _staleness(rollout, step):
        causes.append(f"a policy that learns fast, with rollout.max_staleness={rollout.max_staleness} (lower it, or optimizer.lr)")
    if rollout.server_args:
        causes.append(f"rollout.server_args={' '.join(rollout.server_args)}")
    if model.dtype == "bfloat16":
        causes.append("rounding (does it go away with model.dtype=float32?)")
    if rollout.engine == "replay":
        causes.append("a recording of another policy")
    else:
        causes.append("a config.json that the sampler reads otherwise (checkpoint_tools verify --logits compares with transformers)")
    return "; ".join(causes)


def _when_stale(bounds: GapBounds, staleness: int) -> GapBounds:
    return GapBounds(largest=float("inf"), mean=bounds.mean + STALE_MEAN * staleness) if staleness else bounds


def _staleness(rollout: RolloutConfig, step: int) -> int:
    """Weight versions that the rollouts of `step` are behind the policy."""
    return min(step, rollout.max_staleness)
