"""The settings of rewards: how answers are verified, and what their length costs."""

from typing import Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from megatron_entropic.config.control import STRICT


@dataclass(frozen=True, config=STRICT)
class RewardConfig:
    """Verification of answers: in processes beside generation, each answer within limits. docs/rewards.md."""

    workers: int = Field(default=0, ge=0, description="verifier processes at most; 0: a quarter of the processor cores, 2 to 16")
    cpu_limit_s: float = Field(default=3.0, gt=0, description="CPU seconds of one answer's verification; beyond, the answer scores 0")
    wall_limit_s: float = Field(
        default=60.0,
        gt=0,
        description="the same in wall-clock seconds, for verifiers that wait instead of computing; far above cpu_limit_s, so that "
        "rewards do not depend on how busy the machine is",
    )
    memory_gb: float = Field(default=4.0, gt=0, description="address space of a verifier process, GiB; beyond, the answer scores 0")
    on_failure: Literal["zero", "stop"] = Field(
        default="zero",
        description="when a verifier raises, dies or returns no score: score 0, count it in reward/failures and warn; or stop the run",
    )

    requests: int = Field(
        default=64, ge=1, le=4096, description="answers under way at one time before judges and reward models behind HTTP"
    )
    overlong_buffer: int = Field(
        default=0,
        ge=0,
        description="DAPO's soft overlong punishment: over the last so many of rollout.max_new_tokens tokens a penalty grows from 0 to "
        "reward.overlong_penalty; 0 is off. Training alone has it, evaluations do not",
    )
    overlong_penalty: float = Field(
        default=1.0, gt=0, le=100, description="what is taken off the reward of a response of rollout.max_new_tokens tokens"
    )

    @model_validator(mode="after")
    def _wall_clock_is_the_backstop(self) -> "RewardConfig":
        if self.wall_limit_s < self.cpu_limit_s:
            raise ValueError(
                f"reward.wall_limit_s={self.wall_limit_s:g} is below reward.cpu_limit_s={self.cpu_limit_s:g}, which it would hide; "
                "raise it or lower the other"
            )
        return self
