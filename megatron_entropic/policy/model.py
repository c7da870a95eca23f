"""The policy network: a Megatron-Core GPTModel that ends in hidden states and hands out its output head."""

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_entropic import platform
from megatron_entropic.config import Config, ModelConfig
from megatron_entropic.distributed.parallel import Parallel
from megatron_entropic.hf.architectures import Architecture
from megatron_entropic.hf.layout import check_layout
from megatron_entropic.hf.tables import padded_vocab_size
from megatron_entropic.policy.experts import mark_experts, moe_settings, use_router
from megatron_entropic.policy.layers import local_block_spec
from megatron_entropic.policy.rope import describe_yarn, rope_settings
from megatron_entropic.policy.transformer_engine import (
    feature_problems,
    feature_settings,
    fuse_gradient_accumulation,
    start_tensor_overlap,
    uses_transformer_engine,
)


class PolicyModel(GPTModel):  # type: ignore[misc]  # Megatron-Core is untyped
    """A GPTModel whose last pipeline stage returns hidden states instead of logits.

    `model(tokens [1, T], position_ids [1, T], attention_mask=None, packed_seq_params=...)` returns [s, 1, H] in the model's
    dtype: on the last stage after the final norm, on others what the next stage takes in. s is T, or T / tensor ranks
    under sequence parallelism.
    """

    arch: Architecture

    def _postprocess(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden_states

    def lm_head_weight(self) -> Tensor:
        """The output head [V_pad / tensor ranks, H], the embedding's own weight when tied. On the last stage only."""
        if not self.post_process:
            raise RuntimeError("only the last pipeline stage has the output head")
        tied = self.share_embeddings_and_output_weights
        weight: Tensor = self.shared_embedding_or_output_weight() if tied else self.output_layer.weight
        return weight


def build_model(arch: Architecture, cfg: Config, parallel: Parallel) -> PolicyModel:
    """This rank's part of the policy on its device, with uninitialised weights: load them before use.

    Collective over the first and last stage's ranks when embeddings are tied. Raises ValueError naming the setting when the
    layout does not divide the architecture, or this machine lacks what they ask for.
    """
    config = transformer_config(arch, cfg)
    describe_yarn(config, arch.rope.yarn)
    if cfg.parallel.tensor_overlap:
        start_tensor_overlap(arch, cfg)
    model = PolicyModel(
        config=config,
        transformer_layer_spec=_layer_spec(config, cfg.model),
        vocab_size=padded_vocab_size(arch.vocab_size, cfg.model.vocab_pad_multiple, cfg.parallel.tensor),
        max_sequence_length=arch.max_positions,
        pre_process=parallel.is_first_stage,
        post_process=parallel.is_last_stage,
        share_embeddings_and_output_weights=arch.tied_embeddings,
        **rope_settings(arch.rope),
        parallel_output=True,
    )
    model.arch = arch
    mark_experts(model)
    if cfg.model.gradient_accumulation_fusion:
        fuse_gradient_accumulation(model)
    model.to(parallel.device)
    return model


def transformer_config(arch: Architecture, cfg: Config) -> TransformerConfig:
    """Megatron-Core's configuration of the architecture in the run's layout and dtype; dropout is off."""
    if problems := check_layout(arch, cfg.parallel, cfg.batch, cfg.rollout) + feature_problems(arch, cfg):
        raise ValueError("; ".join(problems))
    dtype = getattr(torch, cfg.model.dtype)
    fused = platform.accelerated()
    transformer_engine = uses_transformer_engine(cfg.model)
    return TransformerConfig(
        num_layers=arch.num_layers,
        hidden_size=arch.hidden_size,
        ffn_hidden_size=arch.ffn_hidden_size,
        num_attention_heads=arch.num_heads,
        num_query_groups=arch.num_kv_heads,
        kv_channels=arch.head_dim,
        qk_layernorm=arch.qk_norm,
        add_qkv_bias=arch.qkv_bias,
        add_bias_linear=False,
        gated_linear_unit=True,
        activation_func=F.silu,
        normalization="RMSNorm",
        layernorm_epsilon=arch.norm_eps,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype is torch.bfloat16,
        tensor_model_parallel_size=cfg.parallel.tensor,
        pipeline_model_parallel_size=cfg.parallel.pipeline,
        context_parallel_size=cfg.parallel.context,
        sequence_parallel=cfg.parallel.sequence,
        # Packed micro-batches differ in length, which the stages must tell each other.
        variable_seq_lengths=cfg.parallel.pipeline > 1,
        **moe_settings(arch, cfg.parallel.expert, grouped=transformer_engine and cfg.model.grouped_experts),
        calculate_per_token_loss=True,
        # Weights are always loaded, so initial values are never seen. The initialisation must run all the same: it marks
        # which parameters are tensor-parallel, and without the marks the gradient norm misses the other ranks' shards.
        perform_initialization=True,
        use_cpu_initialization=False,
        init_method=_leave_as_is,
        output_layer_init_method=_leave_as_is,
        embedding_init_method=_leave_as_is,
        bias_activation_fusion=fused,
        bias_dropout_fusion=fused,
        apply_rope_fusion=transformer_engine and arch.rope.yarn is None,  # the fused kernel knows no attention factor
        masked_softmax_fusion=False,
        persist_layer_norm=False,
        gradient_accumulation_fusion=False,  # Transformer Engine's layers: fuse_gradient_accumulation
        deterministic_mode=cfg.trainer.deterministic,
        **feature_settings(cfg),
        **_recomputation(arch, cfg.model),
        cuda_graph_scope=[],  # the default is deprecated, and says so on every rank
    )


def _recomputation(arch: Architecture, model: ModelConfig) -> dict[str, Any]:
    """Megatron-Core's settings of what is computed again in the backward pass: nothing, all MLPs, or every layer."""
    match model.recompute:
        case "none":
            return {}
        case "selective":
            return {"recompute_granularity": "selective", "recompute_modules": ["moe" if arch.num_experts else "mlp"]}
        case "full":
            return {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}


def _leave_as_is(weight: Tensor) -> Tensor:
    return weight


def _layer_spec(config: TransformerConfig, model: ModelConfig) -> ModuleSpec | TransformerBlockSubmodules:
    if uses_transformer_engine(model):
        layer = get_gpt_layer_with_transformer_engine_spec(
            num_experts=config.num_moe_experts, moe_grouped_gemm=config.moe_grouped_gemm, qk_layernorm=config.qk_layernorm
        )
        if config.num_moe_experts is not None:
            use_router(layer)
        return layer
    return local_block_spec(config)
