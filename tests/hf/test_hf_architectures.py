"""config.json, as transformers 4 and 5 write it, becomes an Architecture, or one error that names the file and the field."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from transformers import LlamaConfig, MistralConfig, MixtralConfig, Qwen2Config, Qwen3Config, Qwen3MoeConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from megatron_entropic.hf.architectures import Architecture
from megatron_entropic.hf.rope import Rope, Yarn
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
        rope=Rope(10000.0),
        norm_eps=1e-6,
        tied_embeddings=True,
        qkv_bias=False,
        qk_norm=True,
    )


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
LINEAR = {"rope_type": "linear", "factor": 2.0}
SCALINGS = {
    "none": (None, Rope(5e5)),
    "llama3": ({"rope_type": "llama3", **LLAMA3}, Rope(5e5, llama3_factor=8.0)),
    "old name": ({"type": "llama3", **LLAMA3}, Rope(5e5, llama3_factor=8.0)),
    "linear": (LINEAR, Rope(5e5, linear_factor=2.0)),
    "dynamic": ({"rope_type": "dynamic", "factor": 2.0}, Rope(5e5)),  # begins beyond the longest sequence
    "yarn": (YARN, Rope(5e5, yarn=Yarn(4.0, 128, 32.0, 1.0, 0.1 * math.log(4.0) + 1.0, truncate=True))),
}


@pytest.mark.parametrize(("scaling", "rope"), SCALINGS.values(), ids=SCALINGS)
def test_transformers_4_and_5_configs_mean_the_same(hf_dir: Path, scaling: dict[str, Any] | None, rope: Rope) -> None:
    tiny_models.edit_config(hf_dir, architectures=["LlamaForCausalLM"])
    tiny_models.edit_config(hf_dir, rope_parameters={"rope_theta": 5e5, **(scaling or {"rope_type": "default"})})
    assert Architecture.from_hf(hf_dir).rope == rope
    tiny_models.edit_config(hf_dir, rope_scaling=scaling, rope_theta=5e5)  # both, and they agree
    assert Architecture.from_hf(hf_dir).rope == rope
    tiny_models.edit_config(hf_dir, rope_parameters=...)
    assert Architecture.from_hf(hf_dir).rope == rope


FAMILY_CONFIGS = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
FAMILY_CONFIGS |= {"mixtral": MixtralConfig, "qwen3_moe": Qwen3MoeConfig}


@pytest.mark.parametrize("kind", FAMILY_CONFIGS)
def test_missing_fields_mean_what_they_mean_to_transformers(tmp_path: Path, kind: str) -> None:
    """As in directories of Llama's first years, which had no rope_theta, num_key_value_heads or max_position_embeddings."""
    model = tiny_models.build(kind)
    model.config.save_pretrained(tmp_path)
    tiny_models.edit_config(tmp_path, architectures=[type(model).__name__], sliding_window=None, num_attention_heads=32)
    missing = ("num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "rope_parameters", "tie_word_embeddings")
    tiny_models.edit_config(tmp_path, hidden_size=1024, **dict.fromkeys(missing, ...))
    arch, theirs = Architecture.from_hf(tmp_path), FAMILY_CONFIGS[kind].from_pretrained(tmp_path)
    assert (arch.num_kv_heads, arch.max_positions, arch.norm_eps, arch.tied_embeddings) == (
        theirs.num_key_value_heads,
        theirs.max_position_embeddings,
        theirs.rms_norm_eps,
        theirs.tie_word_embeddings,
    )
    assert arch.rope == Rope(theirs.rope_parameters["rope_theta"])
    assert arch.head_dim == (getattr(theirs, "head_dim", None) or 1024 // 32)


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_bias": None},
        {"mlp_bias": None},
        {"quantization_config": None},
        {"rope_parameters": {"rope_type": "default"}, "rope_theta": 1e4},
        {"rope_parameters": {"rope_type": "default"}},
        {"dtype": "float32", "torch_dtype": "float32"},
        {"num_key_value_heads": None},
    ],
)
def test_what_computes_the_same_is_read(hf_dir: Path, changes: dict[str, Any]) -> None:
    tiny_models.edit_config(hf_dir, architectures=["LlamaForCausalLM"])
    tiny_models.edit_config(hf_dir, **changes)
    assert Architecture.from_hf(hf_dir).rope == Rope(10000.0)


@pytest.mark.parametrize("hf_dir", ["qwen2"], indirect=True)
@pytest.mark.parametrize(
    "changes",
    [
        {"max_window_layers": 4},
        {"max_window_layers": 0, "sliding_window": None},
        {"max_window_layers": 0, "sliding_window": 512},
        {"max_window_layers": ...},  # 28 by default
    ],
)
def test_a_window_that_no_layer_uses_is_none(hf_dir: Path, changes: dict[str, Any]) -> None:
    tiny_models.edit_config(hf_dir, architectures=["Qwen2ForCausalLM"], layer_types=...)
    tiny_models.edit_config(hf_dir, **{"use_sliding_window": True, "sliding_window": 64, **changes})
    assert set(Qwen2Config.from_pretrained(hf_dir).layer_types) == {"full_attention"} or changes.get("sliding_window") == 512
    Architecture.from_hf(hf_dir)
    tiny_models.edit_config(hf_dir, use_sliding_window=True, sliding_window=64, max_window_layers=3)
    with pytest.raises(ValueError, match="field sliding_window "):
        Architecture.from_hf(hf_dir)


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
        ({"sliding_window": 64}, "sliding_window"),  # ignored by transformers, applied by vLLM
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
        ({"vocab_size": ...}, "vocab_size"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"rms_norm_eps": None}, "rms_norm_eps"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"rope_theta": 5e5}, "rope_parameters.rope_theta"),
        ({"rope_scaling": YARN}, "rope_scaling"),
        ({"rope_scaling": YARN, "rope_theta": 1e4}, "rope_scaling"),
        ({"rope_parameters": {"rope_theta": 1e4, "rope_type": "yarn"}}, "rope_parameters.factor"),
        ({"rope_parameters": {**YARN, "factor": 0.5}}, "rope_parameters.factor"),
        ({"rope_parameters": {**YARN, "factor": 3.0}}, "rope_parameters.original_max_position_embeddings"),
        ({"rope_parameters": YARN, "original_max_position_embeddings": 64}, "rope_parameters.original_max_position_embeddings"),
        ({"rope_parameters": {**YARN, "beta_fast": None}}, "rope_parameters.beta_fast"),
        ({"rope_parameters": {**YARN, "truncate": 1}}, "rope_parameters.truncate"),
        ({"rope_parameters": {**YARN, "attention_factor": -1.0}}, "rope_parameters.attention_factor"),
        ({"rope_parameters": {**YARN, "type": "linear"}}, "rope_parameters.type"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope_parameters.rope_type"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "alpha": 3.0}}, "rope_parameters.alpha"),
        ({"rope_parameters": {"rope_type": "default", "mrope_section": [1, 2, 1]}}, "rope_parameters.mrope_section"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2}}, "rope_parameters.factor"),
        ({"dtype": "bfloat16", "torch_dtype": "float16"}, "dtype"),
        ({"head_dim": 7}, "head_dim"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "rope_parameters.partial_rotary_factor"),
        (
            {"rope_parameters": {"rope_theta": 1e4, "rope_type": "llama3", **LLAMA3, "high_freq_factor": 5.0}},
            "rope_parameters.high_freq_factor",
        ),
        ({"rope_parameters": ..., "rope_theta": 1e4, "rope_scaling": {"type": "linear"}}, "rope_scaling.factor"),
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
def test_every_layer_of_mixtral_is_a_normalized_moe(hf_dir: Path) -> None:
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
        ("qwen3_moe", {"use_sliding_window": True, "sliding_window": 64}, "sliding_window"),
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
