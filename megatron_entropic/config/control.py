"""The settings of entropy control, and the presets that reproduce released code. Equations: docs/entropy_control.md."""

import itertools
from typing import Annotated, Any, Literal, Protocol

from pydantic import AfterValidator, ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from megatron_entropic.system.named_functions import FORMS, check_name, named_object

STRICT = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)

AntiWindup = Literal["conditional", "back_calculation", "off"]

KINDS = {
    "entropic": "megatron_entropic.control.steering:ENTROPIC",
    "aent": "megatron_entropic.control.aent:AENT",
    "entropic+aent": "megatron_entropic.control.entropic_aent:ENTROPIC_AENT",
    "entropy_bonus": "megatron_entropic.control.constant:ENTROPY_BONUS",
    "nsr": "megatron_entropic.control.constant:NSR",
    "aec": "megatron_entropic.control.aec:AEC_KIND",
    "clip_cov": "megatron_entropic.control.covariance:CLIP_COV",
    "kl_cov": "megatron_entropic.control.covariance:KL_COV",
    "none": "megatron_entropic.control.constant:NONE",
}
"""The kinds of control that come with the project: by name the record (control/kinds.py); imported when it is used."""
KIND_ENTRY_POINTS = "megatron_entropic.control_kinds"
KindName = Annotated[str, AfterValidator(lambda name: check_name(name, KINDS, KIND_ENTRY_POINTS))]

ACTUATORS = {
    "high_prob": "megatron_entropic.algorithms.actuators:HIGH_PROB",
    "surprisal": "megatron_entropic.algorithms.actuators:SURPRISAL",
    "signed": "megatron_entropic.algorithms.actuators:SIGNED",
    "exact": "megatron_entropic.algorithms.actuators:EXACT",
}
"""The actuators that come with the project: by name the record (algorithms/actuators.py)."""
ACTUATOR_ENTRY_POINTS = "megatron_entropic.actuators"
ActuatorName = Annotated[str, AfterValidator(lambda name: check_name(name, ACTUATORS, ACTUATOR_ENTRY_POINTS))]

READ_BY_ALL = ("kind", "entropy_temperature", "fresh_measurement", "high_prob_threshold", "max_bad_steps")
"""Settings of `control` that mean the same for every kind: what is measured, and when measurements are bad."""
READ_BY_OUTSIDERS = ("options",)
"""Further ones that a kind from outside the package reads."""


class ReadsSettings(Protocol):
    """The part of a kind's record that its settings are checked by."""

    @property
    def meaning(self) -> str: ...

    @property
    def reads(self) -> tuple[str, ...]: ...


def kind_settings(kind: str) -> ReadsSettings:
    """The record of a kind, as far as settings are concerned. Raises ValueError naming what is missing of one from outside."""
    record: ReadsSettings = named_object("control.kind", kind, KINDS, KIND_ENTRY_POINTS)
    return record


def settings_read_by(kind: str) -> tuple[str, ...]:
    """Names of the settings of `control` that a kind reads. Raises as `kind_settings`."""
    return (*READ_BY_ALL, *kind_settings(kind).reads, *(READ_BY_OUTSIDERS if kind not in KINDS else ()))


@dataclass(frozen=True, config=STRICT)
class ControlConfig:
    """The controller that holds the entropy, and its settings (EntroPIC: arXiv 2511.15248; AEnt: arXiv 2509.03493)."""

    kind: KindName = Field(
        default="entropic",
        description=f"{', '.join(KINDS)}; one of an installed package, or package.module:KIND or file.py:KIND of yours; "
        "docs/entropy_control.md",
    )
    options: dict[str, Any] = Field(default_factory=dict, description="settings of a kind from outside: control.options.NAME=value")
    # -- the target
    target_entropy: float = Field(default=0.1, description="target: token-mean entropy in nats at rollout.temperature")
    target_unit: Literal["nats", "initial"] = Field(
        default="nats", description="unit of the targets: nats, or multiples of the entropy measured before the first update"
    )
    target_points: tuple[tuple[int, float], ...] = Field(
        default=(), description="schedule: [update, target] pairs in order, starting from target_entropy at update 0"
    )
    target_shape: Literal["hold", "linear", "cosine"] = Field(
        default="linear",
        description="between two points: hold the earlier (piecewise constant), or go over linearly or by a half cosine",
    )
    # -- what is measured
    steer_by: Literal["entropy", "clamped_entropy"] = Field(default="entropy", description="which entropy the target is about")
    entropy_temperature: Literal["sampling", "raw"] = Field(
        default="sampling", description="measure at rollout.temperature, or raw: at temperature 1"
    )
    fresh_measurement: bool = Field(
        default=False, description="measure before the first update of each batch by a log-prob pass, also with one update per batch"
    )
    smoothing: float = Field(default=0.0, ge=0, lt=1, description="weight of the past in the smoothed measurement; 0 is off")
    response_share: float = Field(
        default=0.15,
        ge=0,
        le=1,
        description="fraction of each update's samples that is measured again after it: the update's effect on the entropy of the same "
        "tokens; 0 is off",
    )
    # -- the PI controller
    gains: Literal["auto", "fixed"] = Field(
        default="auto", description="auto: kp and ki are tuned from the run's own response, from the given ones until that is known"
    )
    kp: float = Field(default=1.0, ge=0, description="EntroPIC's proportional gain, 1 / nat")
    ki: float = Field(default=0.01, ge=0, description="EntroPIC's integral gain, 1 / (nat x update)")
    alpha_limit: float = Field(default=1.0, gt=0, description="|alpha| never exceeds this")
    anti_windup: AntiWindup = Field(
        default="conditional",
        description="while alpha is saturated: freeze the integral against errors that push further out, or lead it back, or neither",
    )
    soft_setpoint: bool = Field(
        default=True, description="approach a new target with the loop's own time constant (bumpless start and setpoint changes)"
    )
    closed_loop_updates: float = Field(
        default=0.0,
        ge=0,
        description="gains=auto: wanted time constant of the closed loop in updates; 0 derives it from Adam's momentum",
    )
    probe_updates: int = Field(
        default=12,
        ge=0,
        description="gains=auto: updates in a cycle of the small steps that test the response while it is in doubt; 0 is none",
    )
    # -- the actuator
    actuator: ActuatorName = Field(
        default="signed",
        description=f"which tokens alpha re-weights, and with which sign: {', '.join(ACTUATORS)}, or {FORMS} of yours; "
        "docs/entropy_control.md says how they differ",
    )
    high_prob_threshold: float = Field(default=0.95, gt=0, lt=1, description="tau of the high_prob actuator")
    denominator: Literal["response_tokens", "high_prob_tokens"] = Field(
        default="response_tokens", description="D of L_adjust: exact per-token weights 1 +- alpha, or the released code's count"
    )
    handoff: bool = Field(
        default=True, description="let the clamped-entropy bonus do what alpha cannot: when it is saturated or has lost its authority"
    )
    handoff_coefficient_max: float = Field(default=0.3, gt=0, description="upper bound of the handed-over bonus coefficient")
    # -- AEnt, and the constant bonus
    coefficient: float = Field(
        default=2e-4, ge=0, description="initial bonus coefficient c_0 (aent, aec); the constant (entropy_bonus)"
    )
    clamp: float = Field(default=0.4, ge=0, lt=1, description="AEnt's p: fraction of the vocabulary with the smallest logits left out")
    entropy_low: float = Field(default=0.05, description="AEnt raises c while the clamped entropy is below this (nats)")
    entropy_high: float = Field(default=0.23, description="AEnt lowers c while the clamped entropy is above this (nats)")
    coefficient_lr: float = Field(default=1e-3, ge=0, description="AEnt's beta")
    coefficient_min: float = Field(default=1e-5, ge=0, description="lower bound of c (aent, aec)")
    coefficient_max: float = Field(default=3e-3, ge=0, description="upper bound of c (aent, aec)")
    coefficient_warmup_steps: int = Field(default=29, ge=0, description="updates before c starts to move")
    # -- further baselines
    coefficient_step: float = Field(default=1e-4, ge=0, description="AEC's delta: c moves by it each update")
    positive_weight: float = Field(
        default=0.1, ge=0, description="NSR's lambda: weight of positive samples; 0 is negative samples only"
    )
    cov_share: float = Field(default=2e-4, gt=0, le=1, description="fraction of response tokens that clip_cov or kl_cov act on")
    cov_low: float = Field(default=1.0, description="clip_cov draws from tokens whose covariance is above this")
    cov_high: float = Field(default=5.0, description="clip_cov draws from tokens whose covariance is below this")
    cov_kl_coefficient: float = Field(default=1.0, ge=0, description="weight of kl_cov's KL penalty on its tokens")
    # -- when measurements are bad
    max_bad_steps: int = Field(default=5, ge=1, description="stop after this many non-finite entropy measurements in a row")

    @model_validator(mode="after")
    def _ordered_bounds(self) -> "ControlConfig":
        for low, high in (("entropy_low", "entropy_high"), ("coefficient_min", "coefficient_max"), ("cov_low", "cov_high")):
            if getattr(self, low) > getattr(self, high):
                raise ValueError(f"control.{low}={getattr(self, low)} is above control.{high}={getattr(self, high)}")
        updates = [0, *(update for update, _ in self.target_points)]
        if any(later <= earlier for earlier, later in itertools.pairwise(updates)):
            raise ValueError(f"control.target_points: updates {updates[1:]} must be above 0 and increase")
        return self


PRESETS: dict[str, dict[str, Any]] = {
    "entropic_released": {
        "kind": "entropic",
        "target_entropy": 0.1,
        "target_unit": "nats",
        "target_points": (),
        "steer_by": "entropy",
        "entropy_temperature": "sampling",
        "smoothing": 0.0,
        "response_share": 0.0,
        "gains": "fixed",
        "kp": 1.0,
        "ki": 0.01,
        "alpha_limit": 1.0,
        "anti_windup": "off",
        "soft_setpoint": False,
        "actuator": "high_prob",
        "high_prob_threshold": 0.95,
        "denominator": "high_prob_tokens",
        "handoff": False,
    },
    "aent_released": {
        "kind": "aent",
        "coefficient": 2e-4,
        "clamp": 0.4,
        "entropy_low": 0.05,
        "entropy_high": 0.23,
        "coefficient_lr": 1e-3,
        "coefficient_min": 1e-5,
        "coefficient_max": 3e-3,
        "coefficient_warmup_steps": 29,
    },
}
"""Settings of `control.preset=NAME`: the authors' code, number for number. Settings given after it win."""


def preset(name: str, **changes: Any) -> ControlConfig:
    """The settings of PRESETS[name] with `changes`. Raises ValueError for an unknown name."""
    if name not in PRESETS:
        raise ValueError(f"control.preset={name!r} is not one of {', '.join(PRESETS)}")
    return ControlConfig(**{**PRESETS[name], **changes})
