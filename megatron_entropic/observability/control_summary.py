"""One sentence on how a run was controlled, for the terminal and the report."""

from collections import Counter

import numpy as np

from megatron_entropic.control.handoff import Phase
from megatron_entropic.observability.run_data import RunData

_CLAUSES = {
    Phase.ALPHA: "alpha steered {}",
    Phase.SHARED: "the bonus shared {}",
    Phase.BONUS: "the bonus alone steered {}",
    Phase.EXHAUSTED: "the target was out of reach in {}",
    Phase.PROBING: "the probe took {}",
}


FEWEST_STEPS = 10
"""From which on what is known of the noise is worth a sentence."""


def describe_control(run: RunData) -> str | None:
    """Who steered in which share of the steps, and since when the gains are tuned; None for runs that do not say.

    "alpha steered 80% of the steps, the bonus shared 12%, the probe took 8%; gains tuned from step 12; one measurement is good to
    4.1%, the controller's estimate to 1.6%": standard errors, as a share of the entropy.
    """
    counts = Counter(phase for phase in run.phases if phase in _CLAUSES)
    if not counts:
        return None
    shares = [_percent(counts[phase] / len(run.phases)) for phase in _CLAUSES if counts[phase]]
    shares[0] += " of the steps"
    clauses = [clause for phase, clause in _CLAUSES.items() if counts[phase]]
    who = ", ".join(clause.format(share) for clause, share in zip(clauses, shares, strict=True))
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


def _percent(share: float) -> str:
    return "<1%" if share < 0.005 else f"{share:.0%}"
