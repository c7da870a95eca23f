"""Delivery of the control effort: alpha while it can, the clamped-entropy bonus for the rest.

Alpha re-weights samples, so it can move the entropy only as far as there are samples with an advantage, and at its limit it has
nothing more to give. The PI controller therefore computes an *effort* in units of alpha, and this divides it:

    trust     rho   = min(1, active / ACTIVE_TRUSTED)        active: fraction of tokens with an advantage, smoothed
    alpha           = rho clip(effort, -limit, +limit)
    rest            = effort - rho alpha
    bonus     c     = clip(-kappa rest, 0, c_max)            the bonus only raises entropy, so a positive rest stays undone
    delivered       = rho alpha - c / kappa

kappa is the coefficient that moves the entropy like one unit of alpha. To first order in the logits it is the ratio of
|A| m pi (log pi + H), mean over the tokens with an advantage, to |dH/dz|^2, mean over all. The bonus pulls every token the same
way while alpha's pull is averaged over noisy advantages, so it takes less: BONUS_UNIT of that ratio, as measured.
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from megatron_entropic.control.measurement import Measurement

ACTIVE_TRUSTED = 0.05
"""Fraction of tokens with an advantage from which alpha is fully trusted."""
BONUS_UNIT = 0.15
"""Measured: one unit of alpha moves the entropy like this fraction of the first-order ratio in the bonus."""
MEMORY = 0.8
"""Weight of the past in the smoothed authority."""
EXHAUSTED_AFTER = 10
"""Updates at the limit of everything before the target counts as out of reach."""


class Phase(StrEnum):
    """The actuator that steers.

        IDLE -> PROBING -> any of ALPHA, SHARED, BONUS, EXHAUSTED, and from each of these four to each other

    Without a dither IDLE goes to one of the four at once. Nothing returns to IDLE; ALPHA goes back to PROBING when the
    response is in doubt again.

    IDLE: nothing measured yet. PROBING: alpha steers, and small alternating steps on top test the response. ALPHA: alpha
    alone. SHARED: alpha is at its limit and the bonus does the rest. BONUS: alpha has lost its authority. EXHAUSTED:
    everything has been at its limit for EXHAUSTED_AFTER updates, and the target is out of reach for now.

    metrics.jsonl holds `number`: new phases go to the end.
    """

    IDLE = "idle"
    PROBING = "probing"
    ALPHA = "alpha"
    SHARED = "shared"
    BONUS = "bonus"
    EXHAUSTED = "exhausted"

    @property
    def number(self) -> int:
        """The index in this list."""
        return list(Phase).index(self)


def next_phase(phase: Phase, *, trust: float, bonus: float, saturated_updates: int) -> Phase:
    """The phase after an update in which the PI controller steered. `trust` below 1/2 loses alpha, above 3/4 regains it."""
    if saturated_updates >= EXHAUSTED_AFTER:
        return Phase.EXHAUSTED
    if trust < (0.75 if phase is Phase.BONUS else 0.5):
        return Phase.BONUS
    return Phase.SHARED if bonus > 0 else Phase.ALPHA


@dataclass(frozen=True)
class Delivery:
    """Split of an effort between alpha and bonus; `effort` is the part delivered, in units of alpha."""

    alpha: float
    bonus: float
    effort: float


class Handoff:
    """Divides the effort. Pure; its state are two smoothed measurements.

    Args:
        alpha_limit: bound of |alpha|.
        bonus_limit: c_max; 0 keeps everything with alpha (then trust is not applied either: the released method).
    """

    def __init__(self, alpha_limit: float, bonus_limit: float) -> None:
        self.alpha_limit = alpha_limit
        self.bonus_limit = bonus_limit
        self.active: float | None = None
        self.unit: float | None = None
        self.saturated_updates = 0
        self.phase = Phase.IDLE

    @property
    def trust(self) -> float:
        """rho."""
        if self.active is None or not self.bonus_limit:
            return 1.0
        return min(1.0, self.active / ACTIVE_TRUSTED)

    @property
    def range(self) -> tuple[float, float]:
        """(lowest, highest) effort that can be delivered."""
        by_alpha = self.trust**2 * self.alpha_limit
        return -by_alpha - (self.bonus_limit / self.unit if self.unit else 0.0), by_alpha

    def observe(self, measured: Measurement) -> None:
        """Takes the authority that the latest batch had."""
        if not math.isfinite(measured.active_fraction):
            return
        past = MEMORY if self.active is not None else 0.0
        self.active = past * (self.active or 0.0) + (1 - past) * measured.active_fraction
        if measured.authority > 0 and measured.active_fraction > 0 and measured.bonus_authority > 0:
            unit = BONUS_UNIT * measured.authority / measured.active_fraction / measured.bonus_authority
            past = MEMORY if self.unit is not None else 0.0
            self.unit = past * (self.unit or 0.0) + (1 - past) * unit

    def divide(self, effort: float, updates: int = 1) -> Delivery:
        """Divides an effort of the PI controller, and moves to the next phase."""
        limit, trust = self.alpha_limit, self.trust
        alpha = trust * min(max(effort, -limit), limit)
        bonus = min(max(-(effort - trust * alpha) * (self.unit or 0.0), 0.0), self.bonus_limit)
        low, high = self.range
        self.saturated_updates = self.saturated_updates + updates if not low < effort < high else 0
        self.phase = next_phase(self.phase, trust=trust, bonus=bonus, saturated_updates=self.saturated_updates)
        return Delivery(alpha, bonus, trust * alpha - (bonus / self.unit if self.unit else 0.0))

    def explain(self) -> str:
        """The phase in a sentence for the log."""
        return {
            Phase.IDLE: "waiting for the first measurement",
            Phase.PROBING: "alpha steers; small alternating steps on top of it test the response",
            Phase.ALPHA: "alpha steers",
            Phase.SHARED: f"alpha is at its limit of {self.alpha_limit:g}; the clamped-entropy bonus does the rest",
            Phase.BONUS: (
                f"alpha has lost its authority (only {100 * (self.active or 0.0):.1f}% of the tokens have an advantage); "
                "the clamped-entropy bonus steers"
            ),
            Phase.EXHAUSTED: (
                f"the target is out of reach for now: the actuators have been at their limits for {self.saturated_updates} updates; "
                "raise control.alpha_limit or control.handoff_coefficient_max, or choose a target nearer to the entropy"
            ),
        }[self.phase]

    def state_dict(self) -> dict[str, Any]:
        return {"active": self.active, "unit": self.unit, "saturated_updates": self.saturated_updates, "phase": str(self.phase)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.active = None if state["active"] is None else float(state["active"])
        self.unit = None if state["unit"] is None else float(state["unit"])
        self.saturated_updates = int(state["saturated_updates"])
        self.phase = Phase(state["phase"])
