"""What a controller is told: one globally reduced measurement."""

import math
from dataclasses import KW_ONLY, dataclass


@dataclass(frozen=True)
class Measurement:
    """Token means over all response tokens of a mini-batch, the same bits on every rank. pi: the policy at the sampled token.

    entropy, clamped_entropy: H and Hc in nats (clamped None when not measured).
    version: optimizer updates the policy had when it was measured. `executed`: those it has by now; the forward pass of an
        update measures the policy before it, so the two differ by one. A controller counts updates by them alone.
    learning_rate: relative to the peak, of the next update.
    response: change of the token mean of what is steered by (entropy or clamped entropy), nats, by the latest executed update alone
        (from version executed - 1 to executed), on the same tokens before and after it; NaN when not measured. `response_tokens`:
        how many tokens.
    requested_target: a target in nats that the user asked for since the last measurement; NaN: the schedule's again.

    What follows is for the hand-off to the entropy bonus; NaN is "not measured", and then alpha steers alone.

    active_fraction: share of tokens with an advantage other than 0.
    authority: mean of |A| m pi (log pi + H): by how much one unit of alpha moves the entropy, to first order and up to the
        step size. 0 when the actuator has no tokens, or these have no advantage.
    pressure: mean of A pi (log pi + H): by how much the policy loss alone lowers it, in the same unit.
        With control.actuator=exact both have Phi (algorithms/actuators.py) in the place of pi (log pi + H).
    bonus_authority: mean of pi (log pi + H)^2, an unbiased estimate of |dH/dz|^2: the same for one unit of entropy bonus.

    Raises ValueError unless 0 <= version <= executed.
    """

    entropy: float
    clamped_entropy: float | None = None
    _: KW_ONLY
    version: int
    executed: int
    learning_rate: float = 1.0
    response: float = math.nan
    response_tokens: int = 0
    requested_target: float | None = None
    active_fraction: float = math.nan
    authority: float = math.nan
    pressure: float = math.nan
    bonus_authority: float = math.nan

    def __post_init__(self) -> None:
        if not 0 <= self.version <= self.executed:
            raise ValueError(
                f"version={self.version}, executed={self.executed}: updates the measured policy had had, and updates done by now"
            )
