"""The setpoint of the entropy: the target's schedule, and the path on which a controller approaches it."""

import math
from collections.abc import Sequence
from typing import Any, Literal

from megatron_entropic.config import ControlConfig

Shape = Literal["hold", "linear", "cosine"]

TARGET_READS = ("target_entropy", "target_unit", "target_points", "target_shape")
"""Settings of the target and its schedule."""


def scheduled_target(start: float, points: Sequence[tuple[int, float]], shape: Shape, update: int) -> float:
    """The target at an update: through (0, start) and the points, constant after the last.

    Args:
        points: (update, target) in increasing order.
        shape: between two points "hold" keeps the earlier one, "linear" and "cosine" (half a period) go over.
    """
    earlier = (0, start)
    for later in points:
        if update < later[0]:
            if shape == "hold":
                return earlier[1]
            fraction = (update - earlier[0]) / (later[0] - earlier[0])
            if shape == "cosine":
                fraction = (1 - math.cos(math.pi * fraction)) / 2
            return earlier[1] + fraction * (later[1] - earlier[1])
        earlier = later
    return earlier[1]


class Reference:
    """The setpoint of each update, in nats.

    The target is the schedule's, times the first measured entropy with `target_unit=initial`, until the user asks for another
    number (`request`), which stays until the schedule is asked for again. With `time_constant` > 0 the setpoint starts at the
    measured entropy and follows the target with a first-order lag, so that neither the start nor a change of the target makes
    the controller jump.
    """

    def __init__(self, cfg: ControlConfig, time_constant: float) -> None:
        self._cfg = cfg
        self._time_constant = time_constant if cfg.soft_setpoint else 0.0
        self.initial: float | None = None
        self.requested: float | None = None
        self.target = cfg.target_entropy
        self.setpoint: float | None = None
        self.updates = 0

    def request(self, target: float) -> None:
        """From now on the target is this many nats, whatever the schedule says; NaN: it is the schedule's again."""
        self.requested = None if math.isnan(target) else target

    def advance(self, entropy: float, executed: int, *, rate: float, hold: bool = False) -> float:
        """The setpoint after `executed` updates of the run, given the measured entropy.

        It moves by at most `rate` nats an update; `hold` keeps it at the measured entropy.
        """
        cfg = self._cfg
        if self.initial is None:
            self.initial = entropy
        updates, self.updates = executed - self.updates, executed
        unit = self.initial if cfg.target_unit == "initial" else 1.0
        scheduled = scheduled_target(cfg.target_entropy, cfg.target_points, cfg.target_shape, self.updates)
        self.target = self.requested if self.requested is not None else unit * scheduled
        if self._time_constant == 0:
            self.setpoint = self.target
        elif self.setpoint is None or hold:
            self.setpoint = entropy
        elif updates > 0:
            step = (self.target - self.setpoint) * -math.expm1(-updates / self._time_constant)
            self.setpoint += min(max(step, -rate * updates), rate * updates)
        return self.setpoint

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("initial", "requested", "target", "setpoint", "updates")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in ("initial", "requested", "setpoint"):
            setattr(self, name, None if state[name] is None else float(state[name]))
        self.target = float(state["target"])
        self.updates = int(state["updates"])
