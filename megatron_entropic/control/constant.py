"""Kinds whose coefficients never change: plain GRPO, a constant bonus, NSR."""

from typing import Any

from megatron_entropic.config import ControlConfig
from megatron_entropic.control.coefficients import Coefficients
from megatron_entropic.control.kinds import ControlKind, always
from megatron_entropic.control.measurement import Measurement, MeasurementGuard


class Static:
    """Constant coefficients: plain GRPO, and the baselines that adapt nothing. It measures only to notice a broken policy."""

    def __init__(self, cfg: ControlConfig, coefficients: Coefficients) -> None:
        self._coefficients = coefficients
        self._guard = MeasurementGuard(f"control.kind={cfg.kind}", cfg.max_bad_steps)

    def coefficients(self) -> Coefficients:
        return self._coefficients

    def step(self, measured: Measurement) -> None:
        self._guard.accepts(measured.entropy)

    def report(self) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {"bad_steps": self._guard.bad_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._guard.bad_steps = int(state["bad_steps"])


ENTROPY_BONUS = ControlKind(
    meaning="a full-entropy bonus with a constant coefficient",
    make=lambda control, momentum: Static(control, Coefficients(entropy_bonus=control.coefficient)),
    reads=("coefficient",),
    adds_bonus=always,
)
NSR = ControlKind(
    meaning="negative sample reinforcement: positive samples count less, or not at all",
    make=lambda control, momentum: Static(control, Coefficients(positive_weight=control.positive_weight)),
    reads=("positive_weight",),
)
NONE = ControlKind(
    meaning="no control: the algorithm alone, plain GRPO by default", make=lambda control, momentum: Static(control, Coefficients())
)
