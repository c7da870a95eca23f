"""AEC: a full-entropy bonus that moves in steps and acts only below the target."""

import math
from typing import Any

from megatron_entropic.config import ControlConfig
from megatron_entropic.control.coefficients import Coefficients
from megatron_entropic.control.kinds import ControlKind, always
from megatron_entropic.control.measurement import Measurement, MeasurementGuard
from megatron_entropic.control.setpoint import TARGET_READS, Reference


class AEC:
    """Adaptive entropy control of Skywork-OR1 (arXiv 2505.22312): a full-entropy bonus that acts only below the target.

        L       = L_policy - a_k (1/N) sum_t H_t           a_k = c_k if H_k <= H_target, else 0
        c_{k+1} = clip(c_k + delta sign(H_target - H_k), c_min, c_max)

    c_0 = `control.coefficient`, delta = `control.coefficient_step`; c moves once per update, also while the bonus is off. Before
    the first measurement the bonus is off. The target is the schedule's, with neither a soft setpoint nor smoothing.
    """

    def __init__(self, cfg: ControlConfig) -> None:
        self._step = cfg.coefficient_step
        self._bounds = cfg.coefficient_min, cfg.coefficient_max
        self._reference = Reference(cfg, time_constant=0.0)
        self._guard = MeasurementGuard("AEC", cfg.max_bad_steps)
        self.coefficient = cfg.coefficient
        self.applied = 0.0

    def coefficients(self) -> Coefficients:
        return Coefficients(entropy_bonus=self.applied)

    def step(self, measured: Measurement) -> None:
        if measured.requested_target is not None:
            self._reference.request(measured.requested_target)
        if not self._guard.accepts(measured.entropy):
            return
        target = self._reference.advance(measured.entropy, measured.executed, rate=math.inf)
        self.applied = self.coefficient if measured.entropy <= target else 0.0
        sign = (target > measured.entropy) - (target < measured.entropy)
        low, high = self._bounds
        self.coefficient = min(max(self.coefficient + sign * self._step, low), high)

    def report(self) -> dict[str, float]:
        """`adapted_coefficient` is c, which control/coefficient shows only while the bonus is on."""
        return {"target_entropy": self._reference.target, "adapted_coefficient": self.coefficient}

    def state_dict(self) -> dict[str, Any]:
        return {
            "coefficient": self.coefficient,
            "applied": self.applied,
            "reference": self._reference.state_dict(),
            "bad_steps": self._guard.bad_steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.coefficient = float(state["coefficient"])
        self.applied = float(state["applied"])
        self._reference.load_state_dict(state["reference"])
        self._guard.bad_steps = int(state["bad_steps"])


AEC_KIND = ControlKind(
    meaning="adaptive entropy control of Skywork-OR1 (arXiv 2505.22312): a bonus that acts only below the target",
    make=lambda control, momentum: AEC(control),
    reads=(*TARGET_READS, "coefficient", "coefficient_step", "coefficient_min", "coefficient_max"),
    targeted=True,
    adds_bonus=always,
)
