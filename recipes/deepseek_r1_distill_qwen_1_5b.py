"""DeepSeek-R1-Distill-Qwen-1.5B under AEnt (arXiv 2509.03493): the authors' example run (40k problems of OpenR1-Math), and baselines.

8 x 80 GB: 4 train, 4 serve; the fullest training GPU needs 56 GB, and a step takes about 84 s on H100s.

| setting | source |
|---|---|
| c from 2e-4 in [1e-5, 3e-3], clamp 0.4, entropy in [0.05, 0.23], beta 1e-3, warm-up 29 updates | AEnt's release |
| 128 prompts x 8, lr 1e-6, temperature 1, responses to 8192 tokens | ours |
| `grpo`, `entropy_bonus` (constant 2e-4, whole entropy), `rloo` | kinds of baselines: the paper; the constant: AEnt's first c |
| Adam 0.9, 0.999, weight decay 0.01, gradient norm 1, clip 0.2, GRPO with std | verl's defaults, which the released scripts leave |
| layout, micro-batches | ours, by `megatron-entropic plan` |

PPO proper is not offered: it needs a critic, which this project does not train. Its clipped loss is what GRPO has here.
"""

from megatron_entropic.config import Config, ParallelConfig, RolloutConfig
from megatron_entropic.config.control import preset
from recipes import parts

VARIANTS = ("grpo", "entropy_bonus", "rloo")


def deepseek_r1_distill_qwen_1_5b() -> Config:
    """AEnt as released."""
    return parts.maths_run(
        "deepseek_r1_distill_qwen_1_5b",
        "DeepSeek-R1-Distill-Qwen-1.5B",
        parallel=ParallelConfig(data=4),
        rollout=RolloutConfig(servers=4, max_new_tokens=8192),
        control=preset("aent_released"),
        batch=parts.SMALL_BATCH,
    )


def grpo() -> Config:
    """Baseline: no control."""
    return parts.grpo(deepseek_r1_distill_qwen_1_5b())


def entropy_bonus() -> Config:
    """Baseline: a constant bonus on the whole entropy."""
    return parts.entropy_bonus(deepseek_r1_distill_qwen_1_5b())


def rloo() -> Config:
    """Baseline: REINFORCE with the leave-one-out baseline."""
    return parts.rloo(deepseek_r1_distill_qwen_1_5b())
