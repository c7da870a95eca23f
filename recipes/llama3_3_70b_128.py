"""Llama-3.3-70B-Instruct on sixteen nodes.

128 x 80 GB: 80 train, 48 serve; the fullest training GPU needs 74 GB, and a step takes about 295 s on H100s.

| setting | source |
|---|---|
| lr 1e-6 | run_entropic.sh, EntroPIC's released settings |
| prompts x samples, temperature 1, length of responses | ours |
| entropy held at what it is at the start, gains tuned, signed actuator | ours: our default control (docs/entropy_control.md) |
| Adam 0.9, 0.999, weight decay 0.01, gradient norm 1, clip 0.2, GRPO with std | verl's defaults, which the released scripts leave |
| layout, micro-batches | ours, by `megatron-entropic plan` |
"""

from megatron_entropic.config import BatchConfig, Config, ParallelConfig, RolloutConfig
from recipes import parts

VARIANTS = ("grpo",)


def llama3_3_70b_128() -> Config:
    """Entropy held where the model starts."""
    return parts.maths_run(
        "llama3_3_70b_128",
        "Llama-3.3-70B-Instruct",
        parallel=ParallelConfig(tensor=8, pipeline=5, data=2, sequence=True),
        rollout=RolloutConfig(servers=6, tensor=8, max_new_tokens=8192),
        control=parts.HOLD_INITIAL,
        batch=BatchConfig(prompts_per_step=256, samples_per_prompt=8, max_tokens_per_micro_batch=16384),
    )


def grpo() -> Config:
    """Baseline: no control."""
    return parts.grpo(llama3_3_70b_128())
