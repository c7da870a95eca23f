"""SmolLM2-135M-Instruct learns sums of two numbers from 1 to 30 under EntroPIC: a pretrained model on two CPU cores.

| setting | source |
|---|---|
| model | `python -m recipes.smollm2` makes it: tied embeddings, 9 heads, 3 key-value heads, 49,152 tokens, a chat template |
| task | ours: it is right about once in twelve samples at first, so that there is something to learn and something to reward |
| target | ours: the entropy that it starts with, measured before the first update |
| lr, batch | ours: small enough for a pretrained model in float32, large enough to see it learn within 40 steps |
"""

from megatron_entropic.config import (
    BatchConfig,
    CheckpointConfig,
    Config,
    ModelConfig,
    OptimizerConfig,
    RolloutConfig,
    RunConfig,
    TaskConfig,
    TrainerConfig,
)
from recipes import parts
from recipes.smollm2 import FOLDER

VARIANTS = ("grpo",)
QUESTION = "What is {first} + {second}? Reply with the number only."


def smollm2_135m() -> Config:
    """Entropy held where the model starts, about 2 nats."""
    return Config(
        run=RunConfig(name="smollm2_135m"),
        model=ModelConfig(hf_path=FOLDER, dtype="float32"),
        batch=BatchConfig(prompts_per_step=12, samples_per_prompt=8, max_tokens_per_micro_batch=1024),
        control=parts.HOLD_INITIAL,
        optimizer=OptimizerConfig(lr=5e-6),
        rollout=RolloutConfig(engine="vllm", servers=1, max_new_tokens=24),
        task=TaskConfig(
            name="addition",
            options={"low": 1, "high": 30, "prompt_template": QUESTION, "answer": "last"},
            chat_template=True,
        ),
        trainer=TrainerConfig(steps=40),
        checkpoint=CheckpointConfig(every=20, keep=1),
    )


def grpo() -> Config:
    """Baseline: no control."""
    return parts.grpo(smollm2_135m())
