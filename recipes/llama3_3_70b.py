"""Llama-3.3-70B-Instruct on eight nodes.

64 x 80 GB: 40 train, 24 serve; the fullest training GPU needs 53 GB, and a step takes about 320 s on H100s.

| setting | source |
|---|---|
| lr 1e-6 | run_entropic.sh, EntroPIC's released settings |
| prompts x samples, temperature 1, length of responses | ours |
| entropy held at what it is at the start, gains tuned, signed actuator | ours: our default control (docs/entropy_control.md) |
| Adam 0.9, 0.999, weight decay 0.01, gradient norm 1, clip 0.2, GRPO with std | verl's defaults, which the released scripts leave |
| layout, micro-batches | ours, by `megatron-entropic plan` |

More responses a step on twice the GPUs: llama3.3_70b_128. How the layout was chosen: docs/choosing_a_layout.md.
"""

from megatron_entropic.config import Config, ParallelConfig, RolloutConfig
from recipes import parts

VARIANTS = ("grpo",)


def llama3_3_70b() -> Config:
    """Entropy held where the model starts."""
    return parts.maths_run(
        "llama3_3_70b",
        "Llama-3.3-70B-Instruct",
        model=parts.recomputing("Llama-3.3-70B-Instruct", "full"),
        parallel=ParallelConfig(tensor=4, pipeline=5, data=2, sequence=True),
        rollout=RolloutConfig(servers=3, tensor=8, max_new_tokens=8192),
        control=parts.HOLD_INITIAL,
        batch=parts.SMALL_BATCH,
    )


def grpo() -> Config:
    """Baseline: no control."""
    return parts.grpo(llama3_3_70b())
