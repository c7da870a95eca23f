"""config.json, as transformers 4 and 5 write it, becomes an Architecture, or one error that names the file and the field."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from megatron_entropic.hf.architectures import Architecture
from tests import tiny_models

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192, "factor": 8.0}


@pytest.fixture
def hf_dir(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A directory with the config.json of the architecture the test asks for, as transformers 5 writes it."""
    tiny_models.build(getattr(request, "param", "llama")).config.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("hf_dir", ["qwen3"], indirect=True)
def test_every_field_is_read(hf_dir: Path) -> None:
    tiny_models.edit_config(hf_dir, architectures=["Qwen3ForCausalLM"], tie_word_embeddings=True)
    assert Architecture.from_hf(hf_dir) == Architecture(
        architecture="Qwen3ForCausalLM",
        num_layers=4,
        hidden_size=32,
        ffn_hidden_size=48,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        vocab_size=99,
        max_positions=512,
        rope_theta=10000.0,
        rope_scaling=None,
        norm_eps=1e-6,
        tied_embeddings=True,
        qkv_bias=False,
        qk_norm=True,
    )


@pytest.mark.parametrize("scaling", [None, {"rope_type": "llama3", **LLAMA3}, {"type": "llama3", **LLAMA3}])
def test_transformers_4_and_5_configs_mean_the_same(hf_dir: Path, scaling: dict[str, Any] | None) -> None:
    tiny_models.edit_config(hf_dir, architectures=["LlamaForCausalLM"])
    five = {"rope_theta": 5e5, "rope_type": "default", **(scaling or {})}
    tiny_models.edit_config(hf_dir, rope_parameters=five)
    new = Architecture.from_hf(hf_dir)
    tiny_models.edit_config(hf_dir, rope_parameters=..., rope_theta=5e5, rope_scaling=scaling)
    old = Architecture.from_hf(hf_dir)
    if scaling is not None and "type" in scaling:
        assert old.rope_scaling == {"rope_type": "llama3", **LLAMA3}
    else:
        assert new == old
    assert old.rope_theta == 5e5
    assert (old.rope_scaling is None) == (scaling is None)


def test_head_size_follows_from_the_hidden_size_where_the_format_says_so(hf_dir: Path) -> None:
    tiny_models.edit_config(hf_dir, architectures=["LlamaForCausalLM"], head_dim=...)
    assert Architecture.from_hf(hf_dir).head_dim == 8


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"architectures": ["Gemma2ForCausalLM"]}, "architectures"),
        ({"architectures": ...}, "architectures"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
        ({"vocab_size": ...}, "vocab_size"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"rms_norm_eps": None}, "rms_norm_eps"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"rope_parameters": {"rope_type": "default"}}, "rope_parameters.rope_theta"),
        ({"rope_parameters": ...}, "rope_theta"),
        ({"rope_parameters": {"rope_theta": 1e4, "rope_type": "yarn", "factor": 4.0}}, "rope_parameters.rope_type"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "rope_parameters.partial_rotary_factor"),
        (
            {"rope_parameters": {"rope_theta": 1e4, "rope_type": "llama3", **LLAMA3, "high_freq_factor": 5.0}},
            "rope_parameters.high_freq_factor",
        ),
        ({"rope_parameters": ..., "rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling.rope_type"),
    ],
)
def test_what_the_policy_cannot_compute_is_refused_by_name(hf_dir: Path, changes: dict[str, Any], field: str) -> None:
    tiny_models.edit_config(hf_dir, architectures=["LlamaForCausalLM"])
    Architecture.from_hf(hf_dir)
    tiny_models.edit_config(hf_dir, **changes)
    with pytest.raises(ValueError, match=rf"config\.json: field {field} ") as error:
        Architecture.from_hf(hf_dir)
    assert str(hf_dir) in str(error.value)


@pytest.mark.parametrize("hf_dir", ["qwen3_moe"], indirect=True)
def test_the_fields_of_a_mixture_are_read(hf_dir: Path) -> None:
    tiny_models.edit_config(hf_dir, architectures=["Qwen3MoeForCausalLM"])
    arch = Architecture.from_hf(hf_dir)
    assert (arch.num_experts, arch.num_experts_per_token, arch.ffn_hidden_size, arch.norm_topk_prob) == (4, 2, 24, False)
    tiny_models.edit_config(hf_dir, num_local_experts=..., num_experts=4, norm_topk_prob=True)  # as transformers 4 names them
    assert Architecture.from_hf(hf_dir) == replace(arch, norm_topk_prob=True)


@pytest.mark.parametrize("hf_dir", ["mixtral"], indirect=True)
def test_every_layer_of_mixtral_is_a_normalized_mixture(hf_dir: Path) -> None:
    tiny_models.edit_config(hf_dir, architectures=["MixtralForCausalLM"])
    arch = Architecture.from_hf(hf_dir)
    assert (arch.num_experts, arch.num_experts_per_token, arch.ffn_hidden_size, arch.norm_topk_prob) == (4, 2, 48, True)


@pytest.mark.parametrize(
    ("kind", "changes", "field"),
    [
        ("mistral", {"sliding_window": 511}, "sliding_window"),
        ("mistral", {"sliding_window": ..., "max_position_embeddings": 4097}, "sliding_window"),
        ("mixtral", {"sliding_window": 256}, "sliding_window"),
        ("mixtral", {"router_jitter_noise": 0.1}, "router_jitter_noise"),
        ("mixtral", {"num_local_experts": ...}, "num_local_experts"),
        ("mixtral", {"num_experts_per_tok": 5}, "num_experts_per_tok"),
        ("mixtral", {"num_experts_per_tok": 1}, "num_experts_per_tok"),
        ("qwen3_moe", {"use_sliding_window": True}, "use_sliding_window"),
        ("qwen3_moe", {"decoder_sparse_step": 2}, "decoder_sparse_step"),
        ("qwen3_moe", {"mlp_only_layers": [0]}, "mlp_only_layers"),
        ("qwen3_moe", {"moe_intermediate_size": ...}, "moe_intermediate_size"),
        ("qwen3_moe", {"num_experts": 8}, "num_local_experts"),
        ("qwen3_moe", {"norm_topk_prob": 1}, "norm_topk_prob"),
    ],
)
def test_windows_and_mixtures_the_policy_cannot_compute_are_refused(
    tmp_path: Path, kind: str, changes: dict[str, Any], field: str
) -> None:
    model = tiny_models.build(kind)
    model.config.save_pretrained(tmp_path)
    tiny_models.edit_config(tmp_path, architectures=[type(model).__name__])
    Architecture.from_hf(tmp_path)
    tiny_models.edit_config(tmp_path, **changes)
    with pytest.raises(ValueError, match=rf"config\.json: field {field} "):
        Architecture.from_hf(tmp_path)


@pytest.mark.parametrize("changes", [{"sliding_window": 512}, {"sliding_window": None}, {"sliding_window": ...}])
@pytest.mark.parametrize("kind", ["mistral", "mixtral"])
def test_a_window_that_no_sequence_outgrows_is_none(tmp_path: Path, kind: str, changes: dict[str, Any]) -> None:
    model = tiny_models.build(kind)
    model.config.save_pretrained(tmp_path)
    tiny_models.edit_config(tmp_path, architectures=[type(model).__name__], **changes)
    assert Architecture.from_hf(tmp_path).max_positions == 512


@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_a_missing_or_broken_config_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json: "):
        Architecture.from_hf(tmp_path)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_megatron_scales_rotary_frequencies_as_transformers_does(factor: float) -> None:
    parameters = {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3, "factor": factor}
    config = LlamaConfig(hidden_size=4096, num_attention_heads=32, max_position_embeddings=131072, rope_parameters=parameters)
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    ours = RotaryEmbedding(128, 1.0, rotary_base=5e5, rope_scaling=True, rope_scaling_factor=factor, use_cpu_initialization=True)
    assert torch.equal(ours.inv_freq, expected)
