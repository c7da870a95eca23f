"""Qwen3-235B-A22B, an MoE model of 128 experts, on sixteen nodes.

128 x 80 GB: 64 train, 64 serve; the fullest training GPU needs 74 GB, and a step takes about 530 s on H100s.

| setting | source |
|---|---|
| lr 1e-6 | run_entropic.sh, EntroPIC's released settings |
| prompts x samples, temperature 1, length of responses | ours |
| entropy held at what it is at the start, gains tuned, signed actuator | ours: our default control (docs/entropy_control.md) |
| Adam 0.9, 0.999, weight decay 0.01, gradient norm 1, clip 0.2, GRPO with std | verl's defaults, which the released scripts leave |
| layout, micro-batches | ours, by `megatron-entropic plan` |

Its 94 layers divide into 2 or 47 pipeline stages only, so experts and tensor ranks carry the split.
"""

from megatron_entropic.config import Config, ParallelConfig, RolloutConfig
from recipes import parts

VARIANTS = ("grpo",)


def qwen3_235b_a22b() -> Config:
    """Entropy held where the model starts."""
    return parts.maths_run(
        "qwen3_235b_a22b",
        "Qwen3-235B-A22B",
        model=parts.recomputing("Qwen3-235B-A22B", "full"),
        parallel=ParallelConfig(tensor=8, data=8, expert=64, sequence=True),
        rollout=RolloutConfig(servers=8, tensor=8, max_new_tokens=8192),
        control=parts.HOLD_INITIAL,
        batch=parts.SMALL_BATCH,
    )


def grpo() -> Config:
    """Baseline: no control."""
    return parts.grpo(qwen3_235b_a22b())
