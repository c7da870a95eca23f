"""Rotary embeddings in Megatron-Core's terms: what of them a GPTModel takes, and what it reads from its configuration."""

import math
from typing import Any

from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_entropic.hf.rope import Rope, Yarn


def rope_settings(rope: Rope) -> dict[str, Any]:
    """The arguments of a GPTModel that describe `rope`; of YaRN `describe_yarn` says the rest."""
    return {
        "position_embedding_type": "rope" if rope.yarn is None else "yarn",
        "rotary_base": rope.theta,
        "rope_scaling": rope.llama3_factor is not None,
        "rope_scaling_factor": rope.llama3_factor or 1.0,
        "seq_len_interpolation_factor": rope.linear_factor,
    }


def describe_yarn(config: TransformerConfig, yarn: Yarn | None) -> None:
    """Adds to `config` the fields that Megatron-Core reads of YaRN outside latent attention, and does not declare."""
    if yarn is None:
        return
    config.yarn_rotary_scaling_factor = yarn.factor
    config.yarn_original_max_position_embeddings = yarn.original_max_positions
    config.yarn_beta_fast = yarn.beta_fast
    config.yarn_beta_slow = yarn.beta_slow
    config.yarn_correction_range_round_to_int = yarn.truncate
    # Megatron's factor is 0.1 mscale ln(factor) + 1, divided by the same of mscale_all_dim.
    config.yarn_mscale = (yarn.attention_factor - 1) / (0.1 * math.log(yarn.factor)) if yarn.factor > 1 else 1.0
    config.yarn_mscale_all_dim = 0.0
