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


def describe_control(run: RunData) -> str | None:
    """Who steered in which share of the steps, and since when the gains are tuned; None for runs that do not say.

    "alpha steered 80% of the steps, the bonus shared 12%, the probe took 8%; gains tuned from step 12; one measurement is good to
    4.1%, the controller's estimate to 1.6%": standard errors, as a share of the target.
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
    """Of the last step that knows: where the noise is large, what a curve does from step to step is mostly which samples came."""
    if not (run.has("control/level_error") and run.has("control/measurement_noise")):
        return ""
    noise, error, target = (run.column(f"control/{name}") for name in ("measurement_noise", "level_error", "target_entropy"))
    known = np.flatnonzero(np.isfinite(noise) & np.isfinite(error) & (noise > 0) & (target > 0))
    if not len(known):
        return ""
    last = known[-1]
    return f"one measurement is good to {noise[last] / target[last]:.1%}, the controller's estimate to {error[last] / target[last]:.1%}"


def _percent(share: float) -> str:
    return "<1%" if share < 0.005 else f"{share:.0%}"
