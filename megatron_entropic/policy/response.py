"""Response of the entropy to an update: measured on the same tokens before and after it, so that the choice of prompts cancels.

The entropies before are those of the update's own forward pass. Those after come from a forward pass over some of the
mini-batch's samples, chosen by their index in it alone: the same ones whatever the layout.

Shapes: N response tokens of a mini-batch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from megatron_entropic.config import ControlConfig, RolloutConfig
from megatron_entropic.control.kinds import measures_response
from megatron_entropic.distributed.parallel import Parallel
from megatron_entropic.distributed.reductions import reduce_control
from megatron_entropic.entropy import TokenStatistics
from megatron_entropic.policy.batching import Batch, MicroBatch


@dataclass(frozen=True)
class Response:
    """Change of the token-mean entropy by one update, the same bits on every rank.

    change: in nats, of what is steered by; NaN when it was not measured. tokens: that it was measured on. seconds: that the pass
    took on this rank.
    """

    change: float = math.nan
    tokens: int = 0
    seconds: float = 0.0

    def state(self) -> dict[str, float | int | None]:
        """As plain numbers, for a checkpoint; None is "not measured"."""
        return {"change": self.change if math.isfinite(self.change) else None, "tokens": self.tokens}

    @classmethod
    def of_state(cls, state: dict[str, float | int | None] | None) -> "Response":
        """From `state()`, or from None: a checkpoint that knows of no response."""
        if state is None or state["change"] is None:
            return cls()
        return cls(float(state["change"]), int(state["tokens"] or 0))


def response_samples(control: ControlConfig, count: int) -> list[int]:
    """Samples of a mini-batch's `count` that the response is measured on, ascending: `response_share` of them, evenly spaced.

    Samples are in the order of their prompts, so all prompts are represented alike. At least one unless it is not measured at all:
    then none.
    """
    if not measures_response(control) or not count:
        return []
    chosen = max(1, round(control.response_share * count))
    return [(2 * number + 1) * count // (2 * chosen) for number in range(chosen)]


class SteeredEntropy:
    """Sums what is steered by over this rank's response tokens of some of a mini-batch's samples, micro-batch by micro-batch.

    The sums are float64 scalars, meaningful on the last pipeline stage and equal over its tensor ranks.
    """

    def __init__(self, control: ControlConfig, batch: Batch, samples: Sequence[int], device: torch.device) -> None:
        chosen = np.zeros(len(batch.samples), dtype=bool)
        chosen[list(samples)] = True
        self._chosen_N = torch.from_numpy(np.repeat(chosen, np.diff(batch.offsets))).to(device)
        self._clamped = control.steer_by == "clamped_entropy"
        self.tokens = torch.zeros((), dtype=torch.float64, device=device)
        self.entropy = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, micro_batch: MicroBatch, measured: TokenStatistics) -> None:
        """Adds a micro-batch's tokens. `measured`: its statistics at the measured temperature."""
        entropy_T = measured.clamped_entropy if self._clamped else measured.entropy
        assert entropy_T is not None, "the clamped entropy is measured in every pass when it is steered by"
        mask_T = micro_batch.mask_T
        chosen: Tensor = self._chosen_N[micro_batch.response_index_T[mask_T]]
        self.tokens += chosen.sum()
        self.entropy += entropy_T.detach()[mask_T][chosen].sum(dtype=torch.float64)


def reduce_response(before: SteeredEntropy, after: SteeredEntropy, parallel: Parallel, seconds: float = 0.0) -> Response:
    """The mean change over the tokens of all ranks. Collectives: one all-reduce over the world of 32 bytes."""
    sums = {"tokens": after.tokens, "before": before.entropy, "after": after.entropy}
    totals, _ = reduce_control(sums, None, parallel)
    tokens = int(totals["tokens"])
    return Response((totals["after"] - totals["before"]) / tokens if tokens else math.nan, tokens, seconds)


def measured_temperature(control: ControlConfig, rollout: RolloutConfig) -> float:
    """The temperature that entropies are measured at."""
    return 1.0 if control.entropy_temperature == "raw" else rollout.temperature
