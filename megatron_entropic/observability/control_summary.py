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

    "alpha steered 80% of the steps, the bonus shared 12%, the probe took 8%; gains tuned from step 12"
    """
    counts = Counter(phase for phase in run.phases if phase in _CLAUSES)
    if not counts:
        return None
    shares = [_percent(counts[phase] / len(run.phases)) for phase in _CLAUSES if counts[phase]]
    shares[0] += " of the steps"
    clauses = [clause for phase, clause in _CLAUSES.items() if counts[phase]]
    who = ", ".join(clause.format(share) for clause, share in zip(clauses, shares, strict=True))
    return f"{who}; {gains}" if (gains := _gains(run)) else who


def _gains(run: RunData) -> str:
    if run.setting("control", "gains") != "auto":
        return ""
    if run.tuned_from is None:
        return "gains as given: the response to alpha was not clear enough to tune them"
    tuned = run.column("control/gains_tuned")
    last = tuned[np.isfinite(tuned)][-1]
    return f"gains tuned from step {run.tuned_from}" + ("" if last else ", in the end the given ones again")


def _percent(share: float) -> str:
    return "<1%" if share < 0.005 else f"{share:.0%}"
