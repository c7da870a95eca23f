"""Gains of the PI controller from the estimated plant, and the dither that makes the estimate possible."""

from dataclasses import dataclass
from typing import Any

from megatron_entropic.config import ControlConfig
from megatron_entropic.control.plant import PlantEstimate

DEAD_TIME = 1.5
"""Updates between a measurement and the middle of the update that answers it."""
LAG_SHARE = 1 / 6
"""Fraction of Adam's lag in the time constant: the controller's error already includes what the lag still owes."""
TRUSTED, DISTRUSTED = 2.0, 0.5
"""Confidence from which an estimate is used, and below which it is given up again."""
NOISE_SHARE = 0.25
"""The proportional term may turn noise into at most this fraction of alpha's limit (standard deviation)."""
DITHER, DITHER_GROWTH = 0.25, 1.6
"""Amplitude of the first cycle of the dither, in units of alpha's limit, and the factor from one cycle to the next."""


@dataclass(frozen=True)
class Gains:
    """kp in 1/nat, ki in 1/(nat x update)."""

    kp: float
    ki: float


class Tuning:
    """Chooses the gains: cautious ones until the plant is known, then those of a wanted closed-loop response.

    The plant is an integrator of gain g behind a dead time and Adam's lag beta1 / (1 - beta1); the controller's error already
    includes what the lag still owes (`Plant.coasting`), and alpha already balances the estimated drift. With T = dead time +
    lag / 6 unless it is given, 1/T of an error is to be removed per update; a critically damped integral does the rest:

        kp = 1 / (|g| T)        ki = kp^2 |g| / 4

    |g| is taken one standard error too large, known or not yet (an overestimated gain makes the loop slower, an underestimated one
    makes it oscillate), and kp is bounded so that noise alone moves alpha by at most NOISE_SHARE of its limit. The configured gains
    are used without `gains=auto`, without a dither while the estimate is not trusted, or when the response clearly has the wrong sign.

    The dither: small alternating steps of alpha, -a, +a, +a, -a in blocks, on top of what the loop asks for. Their sum is zero.
    It lasts while the gain is in doubt, and grows only while that needs it: where one update moves the entropy well beyond what
    noise hides, the first cycle is enough; where it does not, a large amplitude cannot do harm.
    """

    def __init__(self, cfg: ControlConfig, momentum: float) -> None:
        self.fallback = Gains(cfg.kp, cfg.ki)
        self._auto = cfg.gains == "auto"
        self._limit = cfg.alpha_limit
        self._block = cfg.probe_updates // 4 if self._auto else 0
        self.time_constant = cfg.closed_loop_updates or DEAD_TIME + LAG_SHARE * momentum / (1 - momentum)
        self.tuned = False
        self.dithered = 0

    def dither(self) -> float:
        """Dither added to alpha in the next update: 0 once the gain is known."""
        if not self._block or self.tuned:
            self.dithered = 0
            return 0.0
        cycle, position = divmod(self.dithered, 4 * self._block)
        self.dithered += 1
        amplitude = self._limit * min(1.0, DITHER * DITHER_GROWTH ** min(cycle, 99))
        return -amplitude if position // self._block in (0, 3) else amplitude

    def gains(self, estimate: PlantEstimate, error_noise: float) -> Gains:
        """The gains for the present estimate; error_noise: standard error of what the controller acts on, nats."""
        self.tuned = self._auto and estimate.confidence >= (DISTRUSTED if self.tuned else TRUSTED)
        plausible = self._block and estimate.confidence > -TRUSTED
        largest = max(-estimate.gain, 0.0) + estimate.gain_error
        if not (self.tuned or plausible) or largest == 0:  # 0: a measurement that never changed
            return self.fallback
        kp = 1.0 / (largest * self.time_constant)
        if error_noise > 0:
            kp = min(kp, NOISE_SHARE * self._limit / error_noise)
        return Gains(kp, kp**2 * largest / 4)

    def state_dict(self) -> dict[str, Any]:
        return {"tuned": self.tuned, "dithered": self.dithered}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.tuned = bool(state["tuned"])
        self.dithered = int(state.get("dithered", 0))
