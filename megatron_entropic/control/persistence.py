"""Correction of an error that stays, whatever the estimate of the plant says."""

import math
from typing import Any

EVIDENCE = 3.0
"""Standard errors by which the mean of an error must differ from 0."""
TOLERANCE = 0.01
"""And the fraction of the setpoint that it must reach: less is left to the integral."""
PROGRESS = 0.75
"""An error that has shrunk to this fraction within a window is on its way."""
AGREEMENT = 0.8
"""Fraction of the updates of a window whose error has the sign of their mean; less is an oscillation."""
RAMP = 10
"""Updates in which the correction grows by alpha's limit."""
RELEASE = 0.7
"""Factor on the correction after an update whose error has the other sign."""


class Persistence:
    """A correction of the effort, which grows while the error stays beyond what noise explains.

    A loop whose gain is overestimated answers too weakly and has no reason to doubt itself. Here the error itself is the reason.
    Its mean is taken over windows of `patience` updates: when two in a row have the same sign (and with them AGREEMENT of the
    updates), by more than EVIDENCE standard errors and TOLERANCE of the setpoint, and the later is not below PROGRESS of the
    earlier, the correction grows during the next window by 1 / RAMP of the limit an update, up to twice the limit. So alpha
    reaches its limit, in the direction that the error asks for, at most 3 patience + 2 RAMP updates after it began to stay,
    whatever the rest of the controller does; sooner when that agrees. When the error has the other sign the correction goes away.

    Pure; a few plain numbers. `patience` must be longer than the loop needs to show an effect.
    """

    def __init__(self, limit: float, patience: int) -> None:
        self.limit = limit
        self.patience = patience
        self.sum = 0.0
        self.signs = 0.0  # sum of the signs
        self.updates = 0
        self.earlier = 0.0  # mean of the window before
        self.direction = 0.0  # in which the correction grows in this window
        self.correction = 0.0

    def step(self, error: float, filtered: float, noise: float, setpoint: float) -> float:
        """The correction of the effort, in units of alpha.

        Args:
            error: measured minus wanted, nats.
            filtered: the same without most of the noise; its sign is the error's.
            noise: standard deviation of `error`, nats.
        """
        self.sum += error
        self.signs += math.copysign(1.0, error)
        self.updates += 1
        if self.updates >= self.patience:
            self._judge(noise, setpoint)
        if filtered * self.direction < 0:
            self.direction = 0.0
        grown = self.correction + self.direction * self.limit / RAMP
        self.correction = max(-2 * self.limit, min(2 * self.limit, grown))
        if filtered * self.correction < 0:
            self.correction *= RELEASE
        return self.correction

    def _judge(self, noise: float, setpoint: float) -> None:
        """At the end of a window: whether the error stays."""
        mean = self.sum / self.updates
        clear = abs(mean) > max(EVIDENCE * noise / math.sqrt(self.updates), TOLERANCE * abs(setpoint))
        agree = abs(self.signs) >= (2 * AGREEMENT - 1) * self.updates
        stays = clear and agree and mean * self.earlier > 0 and abs(mean) > PROGRESS * abs(self.earlier)
        self.direction = math.copysign(1.0, mean) if stays else 0.0
        self.sum, self.signs, self.updates, self.earlier = 0.0, 0.0, 0, mean if clear else 0.0

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("sum", "signs", "updates", "earlier", "direction", "correction")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = int(state["updates"])
        for name in ("sum", "signs", "earlier", "direction", "correction"):
            setattr(self, name, float(state[name]))
