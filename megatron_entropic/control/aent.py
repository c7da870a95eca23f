"""AEnt: an adaptive coefficient for the clamped-entropy bonus (arXiv 2509.03493)."""

from typing import Any

from megatron_entropic.config import ControlConfig
from megatron_entropic.control.coefficients import Coefficients
from megatron_entropic.control.kinds import ControlKind, always
from megatron_entropic.control.measurement import Measurement, MeasurementGuard


class AEnt:
    """Keeps the clamped entropy inside [entropy_low, entropy_high] by moving the bonus coefficient c.

        L = L_policy - c_k (1/N) sum_t Hc_t
        c_{k+1} = clip(c_k - beta (min(0, Hc_k - H_low) + max(0, Hc_k - H_high)), c_min, c_max)

    once per update, after `warmup_steps` updates at c_0. `coefficient` is what the next update applies. A pure object:
    no collectives; every rank steps with the same globally reduced measurement.

    Args:
        coefficient: c_0.
        clamp: p, the fraction of the (true) vocabulary with the smallest logits that is left out of Hc.
        entropy_low, entropy_high: the band, nats per token.
        lr: beta.
        bounds: (c_min, c_max).
        warmup_steps: updates before c moves.
        max_bad_steps: see MeasurementGuard.
    """

    def __init__(
        self,
        coefficient: float = 2e-4,
        clamp: float = 0.4,
        entropy_low: float = 0.05,
        entropy_high: float = 0.23,
        lr: float = 1e-3,
        bounds: tuple[float, float] = (1e-5, 3e-3),
        warmup_steps: int = 29,
        max_bad_steps: int = 5,
    ) -> None:
        self.coefficient = coefficient
        self.clamp = clamp
        self.entropy_low = entropy_low
        self.entropy_high = entropy_high
        self.lr = lr
        self.bounds = bounds
        self.warmup_steps = warmup_steps
        self.updates = 0
        self._guard = MeasurementGuard("AEnt", max_bad_steps)

    def step(self, clamped_entropy: float) -> None:
        """Takes the measured clamped entropy (nats, token mean over the mini-batch), sets `coefficient` for the next update."""
        if not self._guard.accepts(clamped_entropy):
            return
        self.updates += 1
        if self.updates <= self.warmup_steps:
            return
        outside = min(0.0, clamped_entropy - self.entropy_low) + max(0.0, clamped_entropy - self.entropy_high)
        low, high = self.bounds
        self.coefficient = min(max(self.coefficient - self.lr * outside, low), high)

    def state_dict(self) -> dict[str, Any]:
        return {"coefficient": self.coefficient, "updates": self.updates, "bad_steps": self._guard.bad_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.coefficient = float(state["coefficient"])
        self.updates = int(state["updates"])
        self._guard.bad_steps = int(state["bad_steps"])


class BonusByAEnt:
    """AEnt as a Controller."""

    def __init__(self, control: ControlConfig) -> None:
        self._aent = AEnt(
            control.coefficient,
            control.clamp,
            control.entropy_low,
            control.entropy_high,
            control.coefficient_lr,
            (control.coefficient_min, control.coefficient_max),
            control.coefficient_warmup_steps,
            control.max_bad_steps,
        )

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


AENT_READS = (
    "clamp",
    "coefficient",
    "entropy_low",
    "entropy_high",
    "coefficient_lr",
    "coefficient_min",
    "coefficient_max",
    "coefficient_warmup_steps",
)
AENT = ControlKind(
    meaning="AEnt (arXiv 2509.03493): a clamped-entropy bonus whose coefficient keeps the clamped entropy within a range",
    make=lambda control, momentum: BonusByAEnt(control),
    reads=AENT_READS,
    ranged=True,
    clamped_entropy=always,
    adds_bonus=always,
)
