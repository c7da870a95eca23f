"""Qwen3-30B-A3B, an MoE model of 128 experts, on four nodes.

32 x 80 GB: 16 train, 16 serve; the fullest training GPU needs 59 GB, and a step takes about 108 s on H100s.

| setting | source |
|---|---|
| lr 1e-6 | run_entropic.sh, EntroPIC's released settings |
| prompts x samples, temperature 1, length of responses | ours |
| entropy held at what it is at the start, gains tuned, signed actuator | ours: our default control (docs/entropy_control.md) |
| Adam 0.9, 0.999, weight decay 0.01, gradient norm 1, clip 0.2, GRPO with std | verl's defaults, which the released scripts leave |
| layout, micro-batches | ours, by `megatron-entropic plan` |
"""

from megatron_entropic.config import Config, ParallelConfig, RolloutConfig
from recipes import parts

VARIANTS = ("grpo",)


def qwen3_30b_a3b() -> Config:
    """Entropy held where the model starts."""
    return parts.maths_run(
        "qwen3_30b_a3b",
        "Qwen3-30B-A3B",
        model=parts.recomputing("Qwen3-30B-A3B", "selective"),
        parallel=ParallelConfig(tensor=4, data=4, expert=8, sequence=True),
        rollout=RolloutConfig(servers=4, tensor=4, max_new_tokens=8192),
        control=parts.HOLD_INITIAL,
        batch=parts.SMALL_BATCH,
    )


def grpo() -> Config:
    """Baseline: no control."""
    return parts.grpo(qwen3_30b_a3b())
