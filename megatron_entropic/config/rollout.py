"""The settings of rollouts: engine, servers, sampling."""

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator
from pydantic.dataclasses import dataclass

from megatron_entropic.config.control import STRICT
from megatron_entropic.system.named_functions import FORMS, check_name

ENGINES = {
    "vllm": "megatron_entropic.rollout.vllm.fleet:launch_fleet",
    "local": "megatron_entropic.rollout.local_engine:make_local_engine",
    "replay": "megatron_entropic.rollout.replay_engine:make_replay_engine",
}
"""The rollout engines that come with the project: by name what makes one of a Config; imported when it is used."""
ENGINE_ENTRY_POINTS = "megatron_entropic.rollout_engines"
EngineName = Annotated[str, AfterValidator(lambda name: check_name(name, ENGINES, ENGINE_ENTRY_POINTS))]


def expanded(path: Path | None) -> Path | None:
    """The path with a `~` in front replaced by the home folder."""
    return None if path is None else Path(os.path.expanduser(path))


ALONE, SHARED = 0.85, 0.4
"""Fractions of a GPU's memory for a server that has the GPU to itself, and for one on a training rank's."""


@dataclass(frozen=True, config=STRICT)
class RolloutConfig:
    """Engine and sampling of the rollouts."""

    engine: EngineName = Field(
        default="vllm",
        description=f"vllm: a fleet of servers; local: in-process generation; replay: recorded rollouts; or {FORMS} of yours",
    )
    servers: int = Field(default=1, ge=1, description="vLLM servers of the run, which launches and owns them unless fleet_dir is set")
    fleet_dir: Path | None = Field(
        default=None,
        description="folder in which servers started elsewhere by `megatron-entropic serve` are announced, with their keys; the run "
        "then starts none. Jobs on a cluster need no such setting",
    )
    tensor: int = Field(default=1, ge=1, description="tensor-parallel ranks of each server")
    temperature: float = Field(
        default=1.0, ge=0, description="sampling temperature; entropy is measured at it; 0, greedy, is for evaluations"
    )
    max_new_tokens: int = Field(default=64, ge=1, description="longest response in tokens")
    max_staleness: int = Field(
        default=0,
        ge=0,
        description="rollouts of step k come from weight version max(0, k - this); 1 generates the next batch during the update, "
        "more only makes rollouts staler; see algorithm.sampler_correction_cap",
    )
    record_tokens: bool = Field(
        default=False,
        description="record beside each step's rollouts, of every response token, its entropy, clamped entropy, trainer log-prob, and "
        "its weight in the loss with and without control: up to 24 bytes a token before compression; docs/looking.md",
    )
    replay_path: Path | None = Field(default=None, description="rollouts/ folder of the recorded run that engine=replay reads")
    base_port: int = Field(default=0, ge=0, le=65000, description="first server's port, the others follow; 0 picks free ports")
    host: str = Field(default="127.0.0.1", description="address the servers listen on and are reached at")
    memory_gb: float = Field(default=0.5, gt=0, description="KV cache of each server on a CPU, GiB")
    gpu_memory_utilization: Literal["auto"] | Annotated[float, Field(gt=0, le=1)] = Field(
        default="auto",
        description=f"fraction of GPU memory a server may take; auto: {ALONE:g}, with share_gpu {SHARED:g}",
    )
    share_gpu: bool = Field(
        default=False,
        description="run the servers on the training ranks' GPUs instead of others, for machines with one GPU; weights then go over "
        "gloo, through host memory, because NCCL takes a GPU once",
    )
    max_sequences: int = Field(
        default=256,
        ge=1,
        description="sequences that a server generates at one time (vLLM's --max-num-seqs); a small model on a large GPU wants more",
    )
    startup_timeout_s: float = Field(default=600.0, gt=0, description="a server not ready by then ends the run")
    request_timeout_s: float = Field(default=600.0, gt=0, description="a generation request that takes longer ends the run")
    sync_timeout_s: float = Field(default=300.0, gt=0, description="a weight update that takes longer ends the run, naming the server")
    max_logprob_gap: Literal["auto"] | Annotated[float, Field(ge=0)] = Field(
        default="auto",
        description="stop when |trainer - sampler| log-prob exceeds this on any token (staleness adds to it); auto: by model.dtype and "
        "max_staleness, of the mean, too, and warn well below that; 0 is off. See docs/rollouts.md",
    )
    server_args: tuple[str, ...] = Field(default=(), description="further arguments for the vLLM server, as on its command line")

    @property
    def gpu_memory_fraction(self) -> float:
        """Fraction of a GPU's memory that a server on it may take."""
        if self.gpu_memory_utilization == "auto":
            return SHARED if self.share_gpu else ALONE
        return self.gpu_memory_utilization

    @model_validator(mode="after")
    def _sharing_is_possible(self) -> "RolloutConfig":
        if self.share_gpu and self.engine != "vllm":
            raise ValueError(f"rollout.share_gpu=true is about vLLM servers; rollout.engine={self.engine} has none")
        if self.share_gpu and self.fleet_dir is not None:
            raise ValueError(
                f"rollout.share_gpu=true, but the servers announced in rollout.fleet_dir={self.fleet_dir} are not the run's own: they "
                "get their weights over NCCL, for which each has a GPU to itself; set one of the two"
            )
        return self

    @field_validator("fleet_dir", "replay_path")
    @classmethod
    def _in_the_home(cls, path: Path | None) -> Path | None:
        return expanded(path)
