"""Qwen2.5-1.5B on one node: the smallest real run.

8 x 80 GB: 4 train, 4 serve; the fullest training GPU needs 53 GB, and a step takes about 36 s on H100s.

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


def qwen2_5_1_5b() -> Config:
    """Entropy held where the model starts."""
    return parts.maths_run(
        "qwen2_5_1_5b",
        "Qwen2.5-1.5B",
        parallel=ParallelConfig(data=4),
        rollout=RolloutConfig(servers=4, max_new_tokens=4096),
        control=parts.HOLD_INITIAL,
        batch=parts.SMALL_BATCH,
    )


def grpo() -> Config:
    """Baseline: no control."""
    return parts.grpo(qwen2_5_1_5b())
