"""Coefficients that a controller sets for one update."""

from dataclasses import dataclass, field

from megatron_entropic.control.handoff import Phase


@dataclass(frozen=True)
class Coefficients:
    """The weights of one update's loss terms; the defaults are plain GRPO.

        L = L_policy + alpha L_adjust - bonus (1/N) sum_t Hc_t - entropy_bonus (1/N) sum_t H_t

    `positive_weight` multiplies L_policy's terms of samples with a positive advantage (NSR). `phase` says who steers in this
    update; it is for the record and changes nothing.
    """

    alpha: float = 0.0
    bonus: float = 0.0
    entropy_bonus: float = 0.0
    positive_weight: float = 1.0
    phase: Phase = field(default=Phase.IDLE, compare=False)
