"""The headline numbers of a run, for the report and the command line."""

import math
import os
from collections import Counter
from dataclasses import dataclass

import numpy as np

from megatron_entropic.control.handoff import Phase
from megatron_entropic.observability.run_data import Array, RunData, load_run

TIME_PARTS = ("rollout", "update", "sync")
"""Parts of a step with a metric time/<part>_s of their own; what is left of time/step_s is called "other". Validation is one
in runs that have it."""

_CLAUSES = {
    Phase.ALPHA: "alpha steered {}",
    Phase.SHARED: "the bonus shared {}",
    Phase.BONUS: "the bonus alone steered {}",
    Phase.EXHAUSTED: "the target was out of reach in {}",
    Phase.PROBING: "the probe took {}",
}


FEWEST_STEPS = 10
"""From which on what is known of the noise is worth a sentence."""


@dataclass(frozen=True)
class Summary:
    """Headline numbers; None is "not known": no step done yet, or no entropy target in this run.

    "last" means: mean over the last third of the steps done (at least one). Entropies in nats, times in seconds.
    """

    name: str
    control_kind: str
    steps_done: int
    steps_planned: int | None
    entropy_first: float | None
    """entropy of the first step"""
    entropy_last: float | None
    steered_last: float | None
    """the entropy that the target is about; entropy_last, unless control.steer_by=clamped_entropy"""
    target_last: float | None
    tracking_error: float | None
    """steered_last - target_last"""
    tracking_error_percent: float | None
    """the same, in % of |target_last|; None for a target of 0"""
    reward_first: float | None
    """reward/mean of the first step"""
    reward_final: float | None
    """reward/mean of the last step"""
    reward_last: float | None
    logprob_gap_max: float | None
    unknown_tokens: int
    """sampled ids of all steps that the tokenizer has no token for"""
    step_seconds: float | None
    """median time of a step"""
    tokens_per_second: float | None
    """median over the steps"""
    time_shares: dict[str, float]
    """fraction of the total time that went to rollout, update, sync and other; empty before the first step"""
    control: str | None
    """who steered and since when the gains are tuned, in a sentence; None for runs that do not say"""
    non_finite_steps: tuple[int, ...]
    """steps, counted from 1, in which any metric is NaN or infinite"""
    learning_rate: float | None
    """of the last step"""
    truncated: float | None
    """fraction of the rollouts of the last third of the steps that reached rollout.max_new_tokens"""
    skipped_updates: int
    """optimizer updates that were left out because loss or gradient was not finite, in all steps"""
    training_seconds: float
    """sum over the steps"""
    signal_steps: int | None
    """steps in which some response had an advantage other than 0; None for runs that do not say"""

    @property
    def signal(self) -> str | None:
        """Number of updates that had a learning signal, in a sentence; None where all had, or it is not known."""
        if self.signal_steps is None or self.signal_steps == self.steps_done:
            return None
        why = "the rewards of each prompt's samples were all equal"
        if self.signal_steps == 0:
            return f"nothing was trained: 0 of {self.steps_done} steps had a reward signal, {why}"
        return f"{self.signal_steps} of {self.steps_done} steps had a reward signal; in the others {why}"

    @property
    def complete(self) -> bool:
        return self.steps_planned is not None and self.steps_done >= self.steps_planned


def summarise(run_dir: str | os.PathLike[str]) -> Summary:
    """The headline numbers of a run folder, finished or not. Raises as load_run."""
    return summarise_run(load_run(run_dir))


def summarise_run(run: RunData) -> Summary:
    """The headline numbers of a run that was read already."""
    entropy, reward = run.column("policy/entropy"), run.column("reward/mean")
    steered_last, target_last = _mean(last_third(run.column(run.steered_field))), _mean(last_third(run.target_entropy))
    error = None if steered_last is None or target_last is None else steered_last - target_last
    return Summary(
        name=run.name,
        control_kind=run.control_kind,
        steps_done=len(run.metrics),
        steps_planned=run.setting("trainer", "steps"),
        entropy_first=_finite(entropy, 0),
        entropy_last=_mean(last_third(entropy)),
        steered_last=steered_last,
        target_last=target_last,
        tracking_error=error,
        tracking_error_percent=100 * error / abs(target_last) if error is not None and target_last else None,
        reward_first=_finite(reward, 0),
        reward_final=_finite(reward, -1),
        reward_last=_mean(last_third(reward)),
        logprob_gap_max=_max(run.column("rollout/logprob_gap")),
        unknown_tokens=int(np.nansum(run.column("rollout/unknown_tokens"))),
        step_seconds=_median(run.column("time/step_s")),
        tokens_per_second=_median(run.column("perf/tokens_per_s")),
        time_shares=_time_shares(run),
        control=describe_control(run),
        non_finite_steps=tuple(line["step"] + 1 for line in run.metrics if any(_is_non_finite(value) for value in line.values())),
        learning_rate=_finite(run.column("optimizer/lr"), -1),
        truncated=_mean(last_third(run.column("response/truncated"))),
        skipped_updates=int(np.nansum(run.column("optimizer/skipped_updates"))),
        training_seconds=float(np.nansum(run.column("time/step_s"))),
        signal_steps=int(np.sum(run.column("control/active_fraction") > 0)) if run.has("control/active_fraction") else None,
    )


def last_third(values: Array) -> Array:
    """The last third of the steps, rounded up."""
    return values[len(values) - math.ceil(len(values) / 3) :]


def time_parts(run: RunData) -> dict[str, Array]:
    """[steps] seconds of each part of a step, adding up to time/step_s; a part that was not logged counts as 0."""
    named = [*TIME_PARTS, *(["validation"] if run.has("time/validation_s") else [])]
    parts = {part: np.nan_to_num(run.column(f"time/{part}_s"), nan=0.0) for part in named}
    parts["other"] = np.maximum(np.nan_to_num(run.column("time/step_s"), nan=0.0) - sum(parts.values()), 0.0)
    return parts


def _time_shares(run: RunData) -> dict[str, float]:
    sums = {part: float(seconds.sum()) for part, seconds in time_parts(run).items()}
    total = sum(sums.values())
    return {part: seconds / total for part, seconds in sums.items()} if total > 0 else {}


def _is_non_finite(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _finite(values: Array, position: int) -> float | None:
    return float(values[position]) if len(values) and np.isfinite(values[position]) else None


def _mean(values: Array) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else None


def _median(values: Array) -> float | None:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else None


def _max(values: Array) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.max()) if len(known) else None


def describe_control(run: RunData) -> str | None:
    """Fractions of the steps steered by each actuator, and the step of tuning; None for runs that do not say.

    "alpha steered 80% of the steps, the bonus shared 12%, the probe took 8%; gains tuned from step 12; one measurement is good to
    4.1%, the controller's estimate to 1.6%": standard errors, as a fraction of the entropy.
    """
    counts = Counter(phase for phase in run.phases if phase in _CLAUSES)
    if not counts:
        return None
    fractions = [_percent(counts[phase] / len(run.phases)) for phase in _CLAUSES if counts[phase]]
    fractions[0] += " of the steps"
    clauses = [clause for phase, clause in _CLAUSES.items() if counts[phase]]
    who = ", ".join(clause.format(fraction) for clause, fraction in zip(clauses, fractions, strict=True))
    return "; ".join(part for part in (who, _gains(run), _precision(run)) if part)


def _gains(run: RunData) -> str:
    if run.setting("control", "gains") != "auto":
        return ""
    if run.tuned_from is None:
        return "gains as given: the response to alpha was not clear enough to tune them"
    tuned = run.column("control/gains_tuned")
    last = tuned[np.isfinite(tuned)][-1]
    return f"gains tuned from step {run.tuned_from}" + ("" if last else ", in the end the given ones again")


def _precision(run: RunData) -> str:
    """Of the last step: where the noise is large, what a curve does from step to step is mostly which samples came."""
    if not run.has("control/level_error") or len(run.steps) < FEWEST_STEPS:
        return ""
    noise, error, level = (run.column(f"control/{name}")[-1] for name in ("measurement_noise", "level_error", "level"))
    if not (noise > 0 and error > 0 and level > 0):  # NaN is not either
        return ""
    return f"one measurement is good to {noise / level:.1%}, the controller's estimate to {error / level:.1%}"


def _percent(fraction: float) -> str:
    return "<1%" if fraction < 0.005 else f"{fraction:.0%}"
