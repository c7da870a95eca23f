"""What a controller does with a measurement that is not a number: hold, count, and in the end stop."""

import logging
import math
from dataclasses import dataclass

from megatron_entropic.errors import ReportedError

logger = logging.getLogger(__name__)


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
