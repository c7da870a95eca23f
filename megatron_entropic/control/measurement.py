"""One globally reduced measurement, as a controller gets it, and what it does with one that is not a number."""

import logging
import math
from dataclasses import KW_ONLY, dataclass

from megatron_entropic.errors import ReportedError

logger = logging.getLogger(__name__)


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

    active_fraction: fraction of tokens with an advantage other than 0.
    authority: mean of |A| m pi (log pi + H): by how much one unit of alpha moves the entropy, to first order and up to the
        step size. 0 when the actuator has no tokens, or these have no advantage.
    pressure: mean of A pi (log pi + H): by how much the policy loss alone lowers it, in the same unit.
        With control.actuator=exact both have Phi (algorithms/actuators.py) in place of pi (log pi + H).
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


class NonFiniteEntropyError(ReportedError, RuntimeError):
    """Too many measurements in a row were not finite: the policy or its logits are broken."""


@dataclass
class MeasurementGuard:
    """Counts consecutive non-finite measurements of one controller."""

    controller: str
    max_bad_steps: int = 5
    bad_steps: int = 0

    def accepts(self, value: float) -> bool:
        """True for a finite `value`. Otherwise warns and returns False (the caller holds its output and state).

        Raises NonFiniteEntropyError at the `max_bad_steps`-th non-finite value in a row.
        """
        if math.isfinite(value):
            self.bad_steps = 0
            return True
        self.bad_steps += 1
        if self.bad_steps >= self.max_bad_steps:
            raise NonFiniteEntropyError(
                f"{self.controller}: the measured entropy was not finite {self.bad_steps} updates in a row (last: {value}); "
                "the policy's logits are broken: look at grad_norm and loss in metrics.jsonl, lower optimizer.lr, "
                "and restart from an earlier checkpoint"
            )
        logger.warning("%s: measured entropy is %s; output held (%d of %d)", self.controller, value, self.bad_steps, self.max_bad_steps)
        return False
