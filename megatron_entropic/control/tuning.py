"""Gains of the PI controller from the estimated plant, and the probe that makes the estimate possible."""

from dataclasses import dataclass
from typing import Any

from megatron_entropic.config import ControlConfig
from megatron_entropic.control.plant import PlantEstimate

DEAD_TIME = 1.5
"""Updates between a measurement and the middle of the update that answers it."""
TRUSTED, DISTRUSTED = 2.0, 0.5
"""Confidence from which an estimate is used, and below which it is given up again."""
CAUTION = 2.0
"""Standard errors by which a gain that is not trusted yet is taken too large."""
NOISE_SHARE = 0.25
"""The proportional term may turn measurement noise into at most this share of alpha's limit (standard deviation)."""


@dataclass(frozen=True)
class Gains:
    """kp in 1/nat, ki in 1/(nat x update)."""

    kp: float
    ki: float


class Tuning:
    """Chooses the gains: the configured ones until the probe is over, then those of a wanted closed-loop response.

    The plant is an integrator of gain g behind a dead time and Adam's lag beta1 / (1 - beta1); the controller's error already
    includes what the lag still owes (`Plant.coasting`). With T = dead time + lag / 2 unless it is given, 1/T of an error is to
    be removed per update, critically damped:

        kp = 1 / (|g| T)        ki = kp^2 |g| / 4

    |g| is taken one standard error too large (an overestimated gain makes the loop slower, an underestimated one makes it
    oscillate), and kp is bounded so that noise alone moves alpha by at most NOISE_SHARE of its limit.

    A probe that left |g| in doubt still bounds it: until the estimate is trusted the gains are those of the largest |g| that it
    allows, CAUTION standard errors up. The configured gains may be far too small for such a plant, and the closed loop that they
    leave nearly open teaches little about it. They stay when there was no probe, or the response clearly has the wrong sign.

    The probe: alternating alpha, +a, -a, -a, +a in blocks. Its sum is zero, so it leaves the entropy where drift takes it.
    """

    def __init__(self, cfg: ControlConfig, momentum: float) -> None:
        self.fallback = Gains(cfg.kp, cfg.ki)
        self._auto = cfg.gains == "auto"
        self._limit = cfg.alpha_limit
        self._block = cfg.probe_updates // 4 if self._auto else 0
        self.time_constant = cfg.closed_loop_updates or DEAD_TIME + momentum / (1 - momentum) / 2
        self.tuned = False

    def probe(self, update: int) -> float | None:
        """Alpha of update number `update` (from 0) while the probe lasts, else None."""
        if not 0 <= update < 4 * self._block:
            return None
        amplitude = min(1.0, self._limit)
        return amplitude if update // self._block in (0, 3) else -amplitude

    def gains(self, estimate: PlantEstimate) -> Gains:
        """The gains for the present estimate."""
        self.tuned = self._auto and estimate.confidence >= (DISTRUSTED if self.tuned else TRUSTED)
        if self.tuned:
            largest = abs(estimate.gain) + estimate.gain_error
        elif self._block and estimate.confidence > -TRUSTED:
            largest = max(-estimate.gain, 0.0) + CAUTION * estimate.gain_error
        else:
            return self.fallback
        if largest == 0:  # a measurement that never changed
            return self.fallback
        kp = 1.0 / (largest * self.time_constant)
        if estimate.noise > 0:
            kp = min(kp, NOISE_SHARE * self._limit / estimate.noise)
        return Gains(kp, kp**2 * largest / 4)

    def state_dict(self) -> dict[str, Any]:
        return {"tuned": self.tuned}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.tuned = bool(state["tuned"])
