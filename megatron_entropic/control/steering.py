"""Holding any reachable target: EntroPIC's PI controller with schedules, self-tuned gains and a hand-off to the entropy bonus."""

import logging
import math
from dataclasses import asdict
from typing import Any

from megatron_entropic.config import ControlConfig
from megatron_entropic.control.coefficients import Coefficients
from megatron_entropic.control.handoff import Delivery, Handoff, Phase
from megatron_entropic.control.kinds import ControlKind
from megatron_entropic.control.measurement import Measurement, MeasurementGuard
from megatron_entropic.control.persistence import Persistence
from megatron_entropic.control.pi import PI
from megatron_entropic.control.plant import Plant
from megatron_entropic.control.setpoint import TARGET_READS, Reference
from megatron_entropic.control.tuning import Tuning

logger = logging.getLogger(__name__)

RATE_SHARE = 0.5
"""The setpoint moves at most this fraction as fast as alpha's limit could move the entropy."""


PATIENCE = 2.0
"""Time constants of the closed loop before an error that stays is taken for one that will not go away."""
PARTS = ("tuning", "reference", "plant", "pi", "persistence", "handoff")


class Steering:
    """The controller of `control.kind=entropic`. Pure: no collectives, the same measurements give the same state anywhere.

    Args:
        momentum: Adam's beta1, the lag between alpha and its effect.
    """

    def __init__(self, cfg: ControlConfig, momentum: float) -> None:
        self.cfg = cfg
        self.tuning = Tuning(cfg, momentum)
        self.reference = Reference(cfg, self.tuning.time_constant)
        self.plant = Plant(momentum)
        self.pi = PI(cfg.kp, cfg.ki, -cfg.alpha_limit, cfg.alpha_limit, cfg.anti_windup)
        self.persistence = Persistence(cfg.alpha_limit, math.ceil(PATIENCE * self.tuning.time_constant))
        self.handoff = Handoff(cfg.alpha_limit, cfg.handoff_coefficient_max if cfg.handoff else 0.0)
        self.delivery = Delivery(0.0, 0.0, 0.0)
        self.smoothed: float | None = None
        self.executed = 0
        self._unmeasured: list[float] = []  # efforts of the updates since the last measurement
        self._guard = MeasurementGuard("EntroPIC", cfg.max_bad_steps)

    def coefficients(self) -> Coefficients:
        """Coefficients of the next update."""
        return Coefficients(alpha=self.delivery.alpha, bonus=self.delivery.bonus, phase=self.handoff.phase)

    def step(self, measured: Measurement) -> None:
        """Takes a measurement and sets `coefficients()` for the next update."""
        if measured.requested_target is not None:
            self.reference.request(measured.requested_target)
        updates = measured.executed - self.executed
        self.executed = measured.executed
        self._unmeasured += [self.delivery.effort] * updates
        value = measured.entropy if self.cfg.steer_by == "entropy" else measured.clamped_entropy
        if value is None:
            raise ValueError("control.steer_by=clamped_entropy: the measurement has no clamped_entropy")
        if not self._guard.accepts(value):
            return
        self._follow(measured, value)
        self.handoff.observe(measured)
        before = self.handoff.phase
        self.delivery = self._answer(updates)
        if self.handoff.phase is not before:
            noteworthy = {before, self.handoff.phase} & {Phase.IDLE, Phase.BONUS, Phase.EXHAUSTED}
            logger.log(logging.INFO if noteworthy else logging.DEBUG, "entropy control: %s", self.handoff.explain())

    def _follow(self, measured: Measurement, value: float) -> None:
        """The estimate after a measurement, for the policy about to be updated; `response` belongs to the latest update."""
        if self.reference.initial is None:
            self.reference.initial = value  # measured, not the level after the updates since then
        since, observed = measured.executed - measured.version, False
        while self._unmeasured:
            if len(self._unmeasured) <= since and not observed:
                self.plant.observe(value)
                observed = True
            last = len(self._unmeasured) == 1
            self.plant.advance(self._unmeasured.pop(0), measured.learning_rate, measured.response if last else math.nan)
        if not observed:
            self.plant.observe(value)
        past = self.cfg.smoothing if self.smoothed is not None else 0.0
        self.smoothed = (past * self.smoothed if past and self.smoothed is not None else 0.0) + (1 - past) * value

    def _answer(self, updates: int) -> Delivery:
        assert self.smoothed is not None
        auto = self.cfg.gains == "auto"
        entropy = self.plant.level if auto else self.smoothed
        estimate = self.plant.estimate()
        gains = self.tuning.gains(estimate, self.plant.error_noise)
        rate = RATE_SHARE * abs(estimate.gain) * self.cfg.alpha_limit if self.tuning.tuned else math.inf
        setpoint = self.reference.advance(entropy, self.executed, rate=rate)
        balance = estimate.balance if auto else 0.0
        self.pi.set_gains(gains.kp, gains.ki)
        self.pi.low, self.pi.high = self.handoff.range
        predicted = entropy - setpoint + (self.plant.coasting if auto else 0.0)
        self.pi.step(predicted)
        if not auto:
            return self.handoff.divide(self.pi.output, updates)
        correction = self.persistence.step(self.smoothed - setpoint, predicted, self.plant.noise, setpoint)
        dither = self.tuning.dither()
        effort = min(max(self.pi.output + balance + correction + dither, self.pi.low), self.pi.high)
        delivery = self.handoff.divide(effort, updates)
        if dither and self.handoff.phase is Phase.ALPHA:
            self.handoff.phase = Phase.PROBING
        return delivery

    def report(self) -> dict[str, float]:
        """The controller's metrics, under control/ in metrics.jsonl; values not known yet are left out."""
        estimate = self.plant.estimate()
        known = {} if self.handoff.unit is None else {"bonus_unit": self.handoff.unit}
        if self.plant.observations:
            known |= {"measured_entropy": self.plant.measured, "predicted_entropy": self.plant.predicted}
        return known | {
            "target_entropy": self.reference.target,
            "setpoint": self.reference.setpoint if self.reference.setpoint is not None else self.reference.target,
            "effort": self.delivery.effort,
            "trust": self.handoff.trust,
            "kp": self.pi.kp,
            "ki": self.pi.ki,
            "gains_tuned": int(self.tuning.tuned),
            "plant_gain": estimate.gain,
            "plant_gain_error": estimate.gain_error,
            "plant_drift": estimate.drift,
            "plant_drift_error": estimate.drift_error,
            "plant_confidence": estimate.confidence,
            "level": self.plant.level,
            "level_error": math.sqrt(self.plant.covariance[0][0]),
            "correction": self.persistence.correction,
            "measurement_noise": estimate.noise,
        }

    def state_dict(self) -> dict[str, Any]:
        parts = {name: getattr(self, name).state_dict() for name in PARTS}
        return parts | {
            "delivery": asdict(self.delivery),
            "smoothed": self.smoothed,
            "executed": self.executed,
            "unmeasured": list(self._unmeasured),
            "bad_steps": self._guard.bad_steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in PARTS:
            if name in state:  # checkpoints of before there was a correction hold none
                getattr(self, name).load_state_dict(state[name])
        self.delivery = Delivery(**state["delivery"])
        self.smoothed = None if state["smoothed"] is None else float(state["smoothed"])
        self.executed = int(state["executed"])
        self._unmeasured = [float(alpha) for alpha in state["unmeasured"]]
        self._guard.bad_steps = int(state["bad_steps"])


STEERING_READS = (
    *TARGET_READS,
    "steer_by",
    "smoothing",
    "response_share",
    "gains",
    "kp",
    "ki",
    "alpha_limit",
    "anti_windup",
    "soft_setpoint",
    "closed_loop_updates",
    "probe_updates",
    "actuator",
    "denominator",
    "clamp",
)
ENTROPIC = ControlKind(
    meaning="EntroPIC (arXiv 2511.15248): a PI controller holds the entropy at a target by re-weighting positive and negative samples",
    make=Steering,
    reads=(*STEERING_READS, "handoff", "handoff_coefficient_max"),
    targeted=True,
    steered=True,
    clamped_entropy=lambda control: control.steer_by == "clamped_entropy",
    adds_bonus=lambda control: control.handoff,
)
