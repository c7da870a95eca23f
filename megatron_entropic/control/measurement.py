"""What a controller is told: one globally reduced measurement."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Measurement:
    """Token means over all response tokens of a mini-batch, the same bits on every rank. pi: the policy at the sampled token.

    entropy, clamped_entropy: H and Hc in nats (clamped None when not measured).
    version: optimizer updates the policy had when it was measured. `executed`: those it has by now; the forward pass of an
        update measures the policy before it, so the two differ by one.
    learning_rate: relative to the peak, of the next update.
    active_fraction: share of tokens with an advantage other than 0.
    authority: mean of |A| m pi (log pi + H): by how much one unit of alpha moves the entropy, to first order and up to the
        step size. 0 when the actuator has no tokens, or these have no advantage.
    pressure: mean of A pi (log pi + H): by how much the policy loss alone lowers it, in the same unit.
    bonus_authority: mean of pi (log pi + H)^2, an unbiased estimate of |dH/dz|^2: the same for one unit of entropy bonus.
    requested_target: a target in nats that the user asked for since the last measurement; NaN: the schedule's again.
    """

    entropy: float
    clamped_entropy: float | None = None
    version: int = 0
    executed: int = 0
    learning_rate: float = 1.0
    active_fraction: float = 1.0
    authority: float = 1.0
    pressure: float = 0.0
    bonus_authority: float = 1.0
    requested_target: float | None = None
