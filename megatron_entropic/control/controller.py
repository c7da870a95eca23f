"""What the trainer steers with: one small protocol, and the controller that `control.kind` names."""

from dataclasses import replace
from typing import Any, Protocol

from megatron_entropic.config import Config, ControlConfig
from megatron_entropic.control.aent import AEnt
from megatron_entropic.control.baselines import AEC, Static
from megatron_entropic.control.coefficients import Coefficients
from megatron_entropic.control.measurement import Measurement
from megatron_entropic.control.steering import Steering


class Controller(Protocol):
    """Measure, step, coefficients. Pure: no collectives; the same measurements, the same coefficients on every rank."""

    def coefficients(self) -> Coefficients:
        """What the next update applies."""

    def step(self, measured: Measurement) -> None:
        """Takes the latest global measurement. Raises NonFiniteEntropyError after `control.max_bad_steps` bad ones in a row."""

    def report(self) -> dict[str, float]:
        """Further numbers for metrics.jsonl, shown under control/."""

    def state_dict(self) -> dict[str, Any]:
        """A few plain numbers (JSON)."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a saved state to the last bit."""


class BonusByAEnt:
    """AEnt behind the protocol."""

    def __init__(self, aent: AEnt) -> None:
        self._aent = aent

    def coefficients(self) -> Coefficients:
        return Coefficients(bonus=self._aent.coefficient)

    def step(self, measured: Measurement) -> None:
        assert measured.clamped_entropy is not None, "AEnt steers by the clamped entropy; the policy measures it for this kind"
        self._aent.step(measured.clamped_entropy)

    def report(self) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return self._aent.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._aent.load_state_dict(state)


class Both:
    """EntroPIC and AEnt side by side, each by its own measurement."""

    def __init__(self, entropic: Steering, aent: BonusByAEnt) -> None:
        self._entropic = entropic
        self._aent = aent

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


def make_controller(cfg: Config) -> Controller:
    """The controller that `control.kind` names."""
    control, momentum = cfg.control, cfg.optimizer.beta1
    if control.kind == "entropic":
        return Steering(control, momentum)
    if control.kind == "aent":
        return BonusByAEnt(_aent(control))
    if control.kind == "entropic+aent":
        # The bonus belongs to AEnt here: nothing is handed over to it.
        return Both(Steering(replace(control, handoff=False), momentum), BonusByAEnt(_aent(control)))
    if control.kind == "entropy_bonus":
        return Static(control, Coefficients(entropy_bonus=control.coefficient))
    if control.kind == "nsr":
        return Static(control, Coefficients(positive_weight=control.positive_weight))
    if control.kind == "aec":
        return AEC(control)
    # clip_cov and kl_cov act in the policy loss (policy/covariance_selection.py): there is nothing to steer.
    return Static(control, Coefficients())


def _aent(control: ControlConfig) -> AEnt:
    return AEnt(
        control.coefficient,
        control.clamp,
        control.entropy_low,
        control.entropy_high,
        control.coefficient_lr,
        (control.coefficient_min, control.coefficient_max),
        control.coefficient_warmup_steps,
        control.max_bad_steps,
    )
