"""From the globally reduced sums of a mini-batch to what the controller and the metrics are told."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from megatron_entropic.control import Coefficients, Measurement
from megatron_entropic.policy.response import Response
from megatron_entropic.policy.token_values import TokenValues

Totals = Mapping[str, float]
"""The CONTROL_SUMS, SUMS and MAXIMA of policy/objective.py by name, summed over all ranks."""


@dataclass(frozen=True)
class UpdateStats:
    """Statistics of one update, the same on every rank. Means are over all response tokens of the mini-batch.

    `measurement` is of the policy *before* the update; `coefficients` are those the update applied. `applied` is False when
    the loss or gradient was not finite, or there was no response token, and the weights were left alone. `response_seconds`: what
    measuring `measurement.response` took on this rank. `tokens`: of all N response tokens, where
    `rollout.record_tokens` asks for them.
    """

    measurement: Measurement
    policy_loss: float
    total_loss: float
    grad_norm: float
    applied: bool
    learning_rate: float
    response_tokens: int
    clip_fraction: float
    actuated_fraction: float
    selected_fraction: float
    high_prob_fraction: float
    logprob_gap_mean: float
    logprob_gap_max: float
    kl_old: float
    response_seconds: float
    coefficients: Coefficients
    tokens: TokenValues | None = None

    @property
    def entropy(self) -> float:
        """Of the policy before the update, nats."""
        return self.measurement.entropy

    @property
    def clamped_entropy(self) -> float | None:
        """Of the policy before the update, nats; None when not measured."""
        return self.measurement.clamped_entropy


def measurement(
    totals: Totals,
    response: Response,
    *,
    version: int,
    executed: int,
    learning_rate: float,
    clamped: bool,
    requested_target: float | None,
) -> Measurement:
    """The measurement for the controller; `clamped` says whether the clamped entropy was measured. NaN without a response token."""
    mean = _token_mean(totals)
    return Measurement(
        entropy=mean("entropy"),
        clamped_entropy=mean("clamped_entropy") if clamped else None,
        version=version,
        executed=executed,
        learning_rate=learning_rate,
        response=response.change,
        response_tokens=response.tokens,
        active_fraction=mean("active"),
        authority=mean("authority"),
        pressure=mean("pressure"),
        bonus_authority=mean("bonus_authority"),
        requested_target=requested_target,
    )


def update_stats(
    totals: Totals,
    measured: Measurement,
    response: Response,
    *,
    grad_norm: float,
    applied: bool,
    learning_rate: float,
    coefficients: Coefficients,
    tokens: TokenValues | None = None,
) -> UpdateStats:
    """Everything an update measured."""
    mean = _token_mean(totals)
    return UpdateStats(
        measurement=measured,
        policy_loss=mean("policy_loss"),
        total_loss=mean("total_loss"),
        grad_norm=grad_norm,
        applied=applied,
        learning_rate=learning_rate,
        response_tokens=int(totals["tokens"]),
        clip_fraction=mean("clipped"),
        actuated_fraction=mean("actuated"),
        selected_fraction=mean("selected"),
        high_prob_fraction=mean("high_prob"),
        logprob_gap_mean=mean("gap"),
        logprob_gap_max=totals["gap_max"],
        kl_old=mean("kl_old"),
        response_seconds=response.seconds,
        coefficients=coefficients,
        tokens=tokens,
    )


def gap_of(updates: Sequence[UpdateStats]) -> tuple[float, float]:
    """The largest and the mean |trainer - sampler| log-prob over the response tokens of a step's updates, nats."""
    tokens = sum(update.response_tokens for update in updates)
    total = math.fsum(update.logprob_gap_mean * update.response_tokens for update in updates)
    return max(update.logprob_gap_max for update in updates), total / tokens


def _token_mean(totals: Totals) -> Callable[[str], float]:
    """Mean over the response tokens by name; NaN when there are none."""
    tokens = totals["tokens"]
    return lambda name: totals[name] / tokens if tokens else math.nan
