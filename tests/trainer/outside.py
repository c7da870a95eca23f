"""One of each thing that can be added from outside the package, as a user would write it: trained with by test_from_outside.py.

Shapes: T tokens, P prompts, S samples per prompt.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_entropic.algorithms.actuators import TokenView
from megatron_entropic.checkpoint_files.kind import model_folder
from megatron_entropic.config import Config, ControlConfig
from megatron_entropic.control import Coefficients, ControlKind, Measurement
from megatron_entropic.hf.architectures import FAMILIES
from megatron_entropic.rollout.local_engine import LocalEngine
from megatron_entropic.rollout.types import Rollout
from megatron_entropic.tasks.decompose import make_decompose
from megatron_entropic.tasks.task import Task


def make_task(options: Mapping[str, Any], seed: int) -> Task:
    """A task: the quickstart's, under another name."""
    return make_decompose(options, seed + 1)


def doubled(rewards_PS: Tensor) -> Tensor:
    """An advantage: twice the distance from the group's mean."""
    return 2 * (rewards_PS - rewards_PS.mean(dim=1, keepdim=True))


def reinforce(ratio_T: Tensor, advantage_T: Tensor, *, clip_low: float, clip_high: float, weight_T: Tensor | None = None) -> Tensor:
    """A policy loss without a clip, halved so that the test knows it."""
    loss_T = -0.5 * ratio_T * advantage_T
    return loss_T if weight_T is None else loss_T * weight_T


def everything(view: TokenView) -> Tensor:
    """An actuator: every token alike."""
    return torch.ones_like(view.log_prob_T)


class Sawtooth:
    """A controller: alpha goes up by `options["by"]` with each measurement and starts again at 1."""

    def __init__(self, control: ControlConfig) -> None:
        self.by = float(control.options["by"])
        self.alpha = 0.0

    def coefficients(self) -> Coefficients:
        return Coefficients(alpha=self.alpha)

    def step(self, measured: Measurement) -> None:
        self.alpha = (self.alpha + self.by) % 1.0

    def report(self) -> dict[str, float]:
        return {"effort": self.alpha}

    def state_dict(self) -> dict[str, Any]:
        return {"alpha": self.alpha}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.alpha = float(state["alpha"])


SAWTOOTH = ControlKind(
    meaning="alpha goes up and starts again", make=lambda control, momentum: Sawtooth(control), reads=("actuator",), steered=True
)


class Signed(LocalEngine):
    """An engine: the one in this process, which signs what it samples."""

    def generate(self, *arguments: Any, **named: Any) -> list[Rollout]:
        return [replace(rollout, server="outside") for rollout in super().generate(*arguments, **named)]


def make_engine(cfg: Config) -> Signed:
    return Signed(cfg.rollout, model_dir=model_folder(cfg.model.hf_path).hf_dir, dtype=cfg.model.dtype, seed=cfg.trainer.seed)


class Lines:
    """A tracker: a line of JSON a step."""

    def __init__(self, run_dir: Path, run_id: str | None, first_step: int) -> None:
        self.run_id = run_id or "lines"
        self._path = run_dir / f"{self.run_id}.txt"
        self._path.open("a").write(f"from {first_step}\n")

    def log(self, step: int, metrics: Mapping[str, float | int | None]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps([step, metrics["policy/entropy"]]) + "\n")

    def close(self) -> None:
        """Nothing is held open."""


FAMILY = FAMILIES["Qwen3ForCausalLM"]
"""An architecture: a known one under another name."""
