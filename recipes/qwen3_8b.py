"""Qwen3-8B-Base as EntroPIC's authors released it: on-policy, entropy held at 0.1 nats.

8 x 80 GB: 4 train, 4 serve; the fullest training GPU needs 60 GB, and a step takes about 1926 s on H100s.

| setting | source |
|---|---|
| 512 prompts x 8, one update; lr 1e-6; temperature 0.6; responses to 8192 tokens; GPU memory fraction 0.8 | run_entropic.sh |
| K_p 1, K_i 0.01, target 0.1 nats, tau 0.95, no anti-windup, D of high-probability tokens | run_entropic.sh, core_algos.py |
| a checkpoint every 20 steps; micro-batches of 16,384 tokens (there: max_num_batched_tokens) | run_entropic.sh |
| Adam 0.9, 0.999, weight decay 0.01, gradient norm 1, clip 0.2, GRPO with std | verl's defaults, which the released scripts leave |
| layout, micro-batches | ours, by `megatron-entropic plan` |
| `tuned`: the same target under our default control | ours |
"""

from megatron_entropic.config import CheckpointConfig, Config, ParallelConfig, RolloutConfig
from recipes import parts

VARIANTS = ("grpo", "nsr", "aec", "tuned")


def qwen3_8b() -> Config:
    """The released settings."""
    return parts.maths_run(
        "qwen3_8b",
        "Qwen3-8B-Base",
        parallel=ParallelConfig(tensor=4, sequence=True),
        rollout=RolloutConfig(servers=2, tensor=2, temperature=0.6, max_new_tokens=8192, gpu_memory_utilization=0.8),
        control=parts.released_entropic(),
        checkpoint=CheckpointConfig(every=20),
    )


def grpo() -> Config:
    """Baseline: no control."""
    return parts.grpo(qwen3_8b())


def nsr() -> Config:
    """Baseline: positive samples weighted 0.1."""
    return parts.nsr(qwen3_8b())


def aec() -> Config:
    """Baseline: an adaptive entropy coefficient, at the same target."""
    return parts.aec(qwen3_8b())


def tuned() -> Config:
    """The same target under our default control."""
    return parts.variant(qwen3_8b(), "tuned", control=parts.tuned(0.1))
