"""What the trainer steers with: any combination of EntroPIC and AEnt behind `coefficients -> step`."""

from dataclasses import dataclass
from typing import Any

from megatron_entropic.config import ControlConfig
from megatron_entropic.control.aent import AEnt
from megatron_entropic.control.entropic import EntroPIC


@dataclass(frozen=True)
class Coefficients:
    """What one update applies: `alpha` weights L_adjust (EntroPIC), `bonus` the clamped-entropy bonus (AEnt)."""

    alpha: float = 0.0
    bonus: float = 0.0


class EntropyController:
    """Routes one global measurement to the controllers of a run. With neither, the run is plain GRPO.

    A pure object without collectives: same measurements, same state, same coefficients on every rank.
    """

    def __init__(self, entropic: EntroPIC | None = None, aent: AEnt | None = None) -> None:
        self.entropic = entropic
        self.aent = aent

    def coefficients(self) -> Coefficients:
        """The coefficients of the next update."""
        return Coefficients(
            alpha=self.entropic.alpha if self.entropic else 0.0,
            bonus=self.aent.coefficient if self.aent else 0.0,
        )

    def step(self, entropy: float, clamped_entropy: float | None = None) -> None:
        """Takes the token means of the last measured mini-batch (nats). AEnt needs `clamped_entropy`."""
        if self.entropic:
            self.entropic.step(entropy)
        if self.aent:
            if clamped_entropy is None:
                raise ValueError("AEnt steers by the clamped entropy, which was not measured: control.clamp must reach the policy")
            self.aent.step(clamped_entropy)

    def state_dict(self) -> dict[str, Any]:
        parts = {"entropic": self.entropic, "aent": self.aent}
        return {name: part.state_dict() for name, part in parts.items() if part}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        parts = {name: part for name, part in (("entropic", self.entropic), ("aent", self.aent)) if part}
        if parts.keys() != state.keys():
            raise ValueError(f"saved controllers {sorted(state)} do not match control.kind, which has {sorted(parts)}")
        for name, part in parts.items():
            part.load_state_dict(state[name])


def make_controller(cfg: ControlConfig) -> EntropyController:
    """The controller that `control.kind` names."""
    entropic = aent = None
    if cfg.kind in ("entropic", "entropic+aent"):
        entropic = EntroPIC(
            cfg.target_entropy,
            cfg.kp,
            cfg.ki,
            cfg.alpha_limit,
            cfg.high_prob_threshold,
            cfg.anti_windup,
            cfg.max_bad_steps,
        )
    if cfg.kind in ("aent", "entropic+aent"):
        aent = AEnt(
            cfg.coefficient,
            cfg.clamp,
            cfg.entropy_low,
            cfg.entropy_high,
            cfg.coefficient_lr,
            (cfg.coefficient_min, cfg.coefficient_max),
            cfg.coefficient_warmup_steps,
            cfg.max_bad_steps,
        )
    return EntropyController(entropic, aent)
