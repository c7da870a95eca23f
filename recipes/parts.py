"""Common parts of the recipes: the maths task, whole-node fleets, and the released settings that several of them start from."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from megatron_entropic.config import (
    AlgorithmConfig,
    BatchConfig,
    Config,
    ControlConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    RolloutConfig,
    RunConfig,
    TaskConfig,
    TrainerConfig,
)
from megatron_entropic.config.control import preset

MODELS = Path("models")
"""Folder of the models: models/NAME with NAME as on the model hub. `model.hf_path=` names another folder."""
SMALL_BATCH = BatchConfig(prompts_per_step=128, samples_per_prompt=8, max_tokens_per_micro_batch=16384)
"""Ours: 128 prompts x 8 samples, so that a step takes minutes."""
MATHS = TaskConfig(name="math", options={"path": "data/math.jsonl"}, chat_template=True)
"""A JSON Lines file of prompt and answer (tasks/math.py). `task.options.path=FILE` names another."""
RELEASED_OPTIMIZER = OptimizerConfig(lr=1e-6, beta2=0.999, weight_decay=0.01)
"""EntroPIC's run_entropic.sh (lr), and verl's defaults for what it leaves: Adam's betas, weight decay, clip at norm 1, constant lr."""
RELEASED_BATCH = BatchConfig(prompts_per_step=512, samples_per_prompt=8, max_tokens_per_micro_batch=16384)
"""EntroPIC's run_entropic.sh: 512 prompts x 8 samples in one update; packed to as many tokens as its max_num_batched_tokens."""
HOLD_INITIAL = ControlConfig(kind="entropic", target_entropy=1.0, target_unit="initial")
"""Our default control, held at the entropy the model starts with: what a model has no published target for."""


def maths_run(
    name: str, model_name: str, *, parallel: ParallelConfig, rollout: RolloutConfig, control: ControlConfig, **sections: Any
) -> Config:
    """A run of models/`model_name` on the maths task; `sections` replace the released batch, optimizer and so on."""
    settings: dict[str, Any] = {"batch": RELEASED_BATCH, "optimizer": RELEASED_OPTIMIZER, "trainer": TrainerConfig(steps=1000)}
    settings |= {"model": ModelConfig(hf_path=MODELS / model_name), "task": MATHS, **sections}
    return Config(run=RunConfig(name=name), parallel=parallel, rollout=rollout, control=control, **settings)


def recomputing(model_name: str, what: Literal["selective", "full"]) -> ModelConfig:
    """The model's settings with `model.recompute`."""
    return replace(ModelConfig(hf_path=MODELS / model_name), recompute=what)


def variant(base: Config, name: str, **sections: Any) -> Config:
    """`base` with other sections, as a run of its own name."""
    return replace(base, run=replace(base.run, name=f"{base.run.name}-{name}"), **sections)


def grpo(base: Config) -> Config:
    """Plain GRPO: no control of the entropy."""
    return variant(base, "grpo", control=ControlConfig(kind="none"))


def nsr(base: Config) -> Config:
    """Negative-sample reinforcement: positive samples weighted 0.1."""
    return variant(base, "nsr", control=ControlConfig(kind="nsr", positive_weight=0.1))


def aec(base: Config) -> Config:
    """Skywork-OR1's adaptive entropy coefficient, at the same target."""
    return variant(base, "aec", control=ControlConfig(kind="aec", target_entropy=base.control.target_entropy))


def entropy_bonus(base: Config) -> Config:
    """GRPO with a constant bonus on the whole entropy, of AEnt's initial coefficient."""
    return variant(base, "entropy_bonus", control=ControlConfig(kind="entropy_bonus", coefficient=base.control.coefficient))


def rloo(base: Config) -> Config:
    """REINFORCE with the leave-one-out baseline, without control."""
    return variant(base, "rloo", control=ControlConfig(kind="none"), algorithm=AlgorithmConfig(advantage="rloo"))


def tuned(target_entropy: float) -> ControlConfig:
    """Our default control at a target in nats: gains tuned from the run's own response, signed actuator, soft setpoint."""
    return ControlConfig(kind="entropic", target_entropy=target_entropy)


def released_entropic(**changes: Any) -> ControlConfig:
    """EntroPIC as its authors released it; `changes` on top."""
    return preset("entropic_released", **changes)
