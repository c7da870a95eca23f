"""A proportional-integral controller with output limits and anti-windup."""

from typing import Any

from megatron_entropic.config.control import AntiWindup


class PI:
    """output = clip(kp e + ki S, low, high), then S += e: an error enters the integral after it was used.

    While the output is saturated the integral would wind up: it would keep growing, and hold the output at its limit long
    after the error has changed its sign.

    * "conditional": S is frozen against errors that push the output further out.
    * "back_calculation": S is led back, ki S += (output - wanted) / T_t with T_t = kp / ki, PI's own integral time.
    * "off": as released.
    """

    def __init__(self, kp: float, ki: float, low: float, high: float, anti_windup: AntiWindup = "conditional") -> None:
        self.kp = kp
        self.ki = ki
        self.low = low
        self.high = high
        self.anti_windup = anti_windup
        self.output = 0.0
        self.integral = 0.0

    def step(self, error: float) -> None:
        """Takes the error (measured minus wanted) and sets `output`."""
        wanted = self.kp * error + self.ki * self.integral
        self.output = min(max(wanted, self.low), self.high)
        if self.anti_windup == "conditional" and wanted != self.output and wanted * error > 0:
            return
        self.integral += error
        if self.anti_windup == "back_calculation" and self.ki > 0:
            self.integral += (self.output - wanted) / max(self.kp, self.ki)

    def set_gains(self, kp: float, ki: float) -> None:
        """Changes the gains without a jump of the integral's part of the output."""
        if ki > 0:
            self.integral *= self.ki / ki
        self.kp, self.ki = kp, ki

    def state_dict(self) -> dict[str, Any]:
        return {"kp": self.kp, "ki": self.ki, "output": self.output, "integral": self.integral}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.kp, self.ki = float(state["kp"]), float(state["ki"])
        self.output, self.integral = float(state["output"]), float(state["integral"])
