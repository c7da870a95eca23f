"""Qwen2.5-Math-1.5B under AEnt (arXiv 2509.03493), and baselines. The model's context is 4096 tokens.

8 x 80 GB: 4 train, 4 serve; the fullest training GPU needs 54 GB, and a step takes about 27 s on H100s.

| setting | source |
|---|---|
| c from 2e-4 in [1e-5, 3e-3], clamp 0.4, entropy in [0.05, 0.23], beta 1e-3, warm-up 29 updates | AEnt's release |
| 128 prompts x 8, lr 1e-6, temperature 1, responses to 3072 tokens | ours |
| `grpo`, `entropy_bonus` (constant 2e-4, whole entropy), `rloo` | kinds of baselines: the paper; the constant: AEnt's first c |
| Adam 0.9, 0.999, weight decay 0.01, gradient norm 1, clip 0.2, GRPO with std | verl's defaults, which the released scripts leave |
| layout, micro-batches | ours, by `megatron-entropic plan` |

PPO proper is not offered: it needs a critic, which this project does not train. Its clipped loss is what GRPO has here.
"""

from megatron_entropic.config import Config, ParallelConfig, RolloutConfig
from megatron_entropic.config.control import preset
from recipes import parts

VARIANTS = ("grpo", "entropy_bonus", "rloo")


def qwen2_5_math_1_5b() -> Config:
    """AEnt as released."""
    return parts.maths_run(
        "qwen2_5_math_1_5b",
        "Qwen2.5-Math-1.5B",
        parallel=ParallelConfig(data=4),
        rollout=RolloutConfig(servers=4, max_new_tokens=3072),
        control=preset("aent_released"),
        batch=parts.SMALL_BATCH,
    )


def grpo() -> Config:
    """Baseline: no control."""
    return parts.grpo(qwen2_5_math_1_5b())


def entropy_bonus() -> Config:
    """Baseline: a constant bonus on the whole entropy."""
    return parts.entropy_bonus(qwen2_5_math_1_5b())


def rloo() -> Config:
    """Baseline: REINFORCE with the leave-one-out baseline."""
    return parts.rloo(qwen2_5_math_1_5b())
