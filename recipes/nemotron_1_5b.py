"""Nemotron-Research-Reasoning-Qwen-1.5B, the model of the EntroPIC paper (arXiv 2511.15248), and the rows of its table.

8 x 80 GB: 4 train, 4 serve; the fullest training GPU needs 55 GB, and a step takes about 371 s on H100s.

| setting | source |
|---|---|
| 512 prompts x 8; lr 1e-6; temperature 0.6; responses to 8192 tokens | run_entropic.sh, released for Qwen3-8B |
| K_p 1, K_i 0.01, target 0.1 nats, tau 0.95 | run_entropic.sh, core_algos.py |
| `grpo`, `nsr`, `aec`; positive weight 0.1; `temperature_1` (and with GRPO) | the paper's table; NSR's own paper (arXiv 2506.01347) |
| `off_policy` (P and I), `off_policy_p`, `off_policy_grpo`: four updates a batch | the paper's table; the number of updates is ours |
| Adam 0.9, 0.999, weight decay 0.01, gradient norm 1, clip 0.2, GRPO with std | verl's defaults, which the released scripts leave |
| layout, micro-batches | ours, by `megatron-entropic plan` |
"""

from dataclasses import replace

from megatron_entropic.config import Config, ParallelConfig, RolloutConfig
from recipes import parts

OFF_POLICY_UPDATES = 4
VARIANTS = ("grpo", "nsr", "aec", "temperature_1", "temperature_1_grpo", "off_policy", "off_policy_p", "off_policy_grpo")


def nemotron_1_5b() -> Config:
    """EntroPIC, on-policy."""
    return parts.maths_run(
        "nemotron_1_5b",
        "Nemotron-Research-Reasoning-Qwen-1.5B",
        parallel=ParallelConfig(data=4),
        rollout=RolloutConfig(servers=4, temperature=0.6, max_new_tokens=8192),
        control=parts.released_entropic(),
    )


def grpo() -> Config:
    """Baseline: no control."""
    return parts.grpo(nemotron_1_5b())


def nsr() -> Config:
    """Baseline: positive samples weighted 0.1."""
    return parts.nsr(nemotron_1_5b())


def aec() -> Config:
    """Baseline: an adaptive entropy coefficient, at the same target."""
    return parts.aec(nemotron_1_5b())


def temperature_1() -> Config:
    """EntroPIC sampled at temperature 1."""
    base = nemotron_1_5b()
    return parts.variant(base, "temperature_1", rollout=replace(base.rollout, temperature=1.0))


def temperature_1_grpo() -> Config:
    """Baseline: GRPO sampled at temperature 1."""
    return parts.grpo(temperature_1())


def off_policy() -> Config:
    """EntroPIC with several updates of each batch: P and I."""
    base = nemotron_1_5b()
    return parts.variant(base, "off_policy", batch=replace(base.batch, mini_batches=OFF_POLICY_UPDATES))


def off_policy_p() -> Config:
    """The proportional term alone, off-policy."""
    return parts.variant(off_policy(), "p", control=parts.released_entropic(ki=0.0))


def off_policy_grpo() -> Config:
    """Baseline: GRPO with several updates of each batch."""
    return parts.grpo(off_policy())
