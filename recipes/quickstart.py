"""The tiny model on `decompose` under EntroPIC: the whole stack on two CPU cores in a few minutes."""

from megatron_entropic.config import (
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
from megatron_entropic.system.shipped_files import models_folder

TINY_MODEL = models_folder() / "tiny-decompose"


def quickstart() -> Config:
    """Holds the entropy near where the tiny model has it (0.87 nats); plain GRPO (`control.kind=none`) lets it fall to 0.69.

    Everything about the control but its target is at its default: the first twelve updates test how this model's entropy
    answers to alpha, and the gains follow from that.
    """
    return Config(
        run=RunConfig(name="quickstart"),
        model=ModelConfig(hf_path=TINY_MODEL, dtype="float32"),
        parallel=ParallelConfig(tensor=2, timeout_s=300),
        batch=BatchConfig(prompts_per_step=64, samples_per_prompt=8, max_tokens_per_micro_batch=8192),
        control=ControlConfig(kind="entropic", target_entropy=0.85),
        optimizer=OptimizerConfig(lr=2e-4),
        rollout=RolloutConfig(engine="vllm", servers=2, max_new_tokens=16, temperature=1.0),
        task=TaskConfig(name="decompose"),
        trainer=TrainerConfig(steps=60),
    )
