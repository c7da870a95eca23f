"""EntroPIC and AEnt side by side."""

from dataclasses import replace
from typing import Any

from megatron_entropic.config import ControlConfig
from megatron_entropic.control.aent import AENT_READS, BonusByAEnt
from megatron_entropic.control.coefficients import Coefficients
from megatron_entropic.control.kinds import ControlKind, always
from megatron_entropic.control.measurement import Measurement
from megatron_entropic.control.steering import STEERING_READS, Steering


class Both:
    """EntroPIC and AEnt, each by its own measurement. The bonus belongs to AEnt here: nothing is handed over to it."""

    def __init__(self, control: ControlConfig, momentum: float) -> None:
        self._entropic = Steering(replace(control, handoff=False), momentum)
        self._aent = BonusByAEnt(control)

    def coefficients(self) -> Coefficients:
        return replace(self._entropic.coefficients(), bonus=self._aent.coefficients().bonus)

    def step(self, measured: Measurement) -> None:
        self._entropic.step(measured)
        self._aent.step(measured)

    def report(self) -> dict[str, float]:
        return self._entropic.report()

    def state_dict(self) -> dict[str, Any]:
        return {"entropic": self._entropic.state_dict(), "aent": self._aent.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._entropic.load_state_dict(state["entropic"])
        self._aent.load_state_dict(state["aent"])


ENTROPIC_AENT = ControlKind(
    meaning="EntroPIC by alpha and AEnt by its bonus, side by side",
    make=Both,
    reads=(*STEERING_READS, *AENT_READS),
    targeted=True,
    steered=True,
    ranged=True,
    clamped_entropy=always,
    adds_bonus=always,
)
