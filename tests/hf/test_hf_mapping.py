"""Shards and merges are inverse, bit for bit, and lie where Megatron-Core expects them."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from megatron_entropic.hf.architectures import FAMILIES, Architecture
from megatron_entropic.hf.headers import read_header
from megatron_entropic.hf.mapping import merge, shard
from megatron_entropic.hf.rope import Rope
from megatron_entropic.hf.tables import Layout, canonical_name, checkpoint_rows, hf_shapes, model_rows, padded_vocab_size
from tests import tiny_models

ARCH = Architecture(
    architecture="Qwen2ForCausalLM",
    num_layers=3,
    hidden_size=12,
    ffn_hidden_size=16,
    num_heads=8,
    num_kv_heads=4,
    head_dim=2,
    vocab_size=99,
    max_positions=64,
    rope=Rope(1e4),
    norm_eps=1e-6,
    tied_embeddings=False,
    qkv_bias=True,
    qk_norm=False,
)


def architecture(name: str) -> Architecture:
    """ARCH as another architecture, with experts where that has them."""
    family = FAMILIES[name]
    experts = {"num_experts": 3, "num_experts_per_token": 2, "moe_names": family.moe_names} if family.moe_names else {}
    return replace(ARCH, architecture=name, qkv_bias=family.qkv_bias, qk_norm=family.qk_norm, **experts)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("tp", [1, 2, 4, 8])
def test_shards_of_every_row_merge_back_bit_for_bit(name: str, tp: int) -> None:
    arch = architecture(name)
    shapes = hf_shapes(arch)
    padded = padded_vocab_size(arch.vocab_size, 4, tp)
    for row in checkpoint_rows(arch):
        whole = [torch.randn(shapes[hf_name]) for hf_name in row.hf]
        tensor_ranks = tp if row.split_over_tensor_ranks else 1
        shards = [shard(row.layout, whole, arch, rank, tensor_ranks, padded) for rank in range(tensor_ranks)]
        assert len({part.shape for part in shards}) == 1
        merged = merge(row.layout, shards, arch)
        assert len(merged) == len(whole)
        for ours, expected in zip(merged, whole, strict=True):
            assert torch.equal(ours, expected), row


def test_query_key_value_are_interleaved_by_group() -> None:
    q, k, v = (torch.arange(rows)[:, None] + base for rows, base in ((16, 0), (8, 100), (8, 200)))
    first, second = (shard(Layout.QKV, [q, k, v], ARCH, rank, 2, 0).flatten().tolist() for rank in range(2))
    assert first == [0, 1, 2, 3, 100, 101, 200, 201, 4, 5, 6, 7, 102, 103, 202, 203]
    assert second == [8, 9, 10, 11, 104, 105, 204, 205, 12, 13, 14, 15, 106, 107, 206, 207]


def test_gate_and_up_are_split_separately() -> None:
    gate, up = torch.arange(4)[:, None], torch.arange(4)[:, None] + 10
    assert shard(Layout.GATE_UP, [gate, up], ARCH, 1, 2, 0).flatten().tolist() == [2, 3, 12, 13]


@pytest.mark.parametrize("tp", [1, 2, 4, 8])
def test_vocabulary_padding_is_zero_on_import_and_gone_on_export(tp: int) -> None:
    padded = padded_vocab_size(99, 128, tp)
    embedding = torch.randn(99, 3)
    shards = [shard(Layout.VOCABULARY, [embedding], ARCH, rank, tp, padded) for rank in range(tp)]
    whole = torch.cat(shards)
    assert whole.shape == (128 * tp, 3)
    assert torch.equal(whole[:99], embedding)
    assert not whole[99:].any()
    assert torch.equal(merge(Layout.VOCABULARY, shards, ARCH)[0], embedding)


@pytest.mark.parametrize(
    ("vocab", "multiple", "tp", "expected"), [(99, 128, 1, 128), (128, 128, 1, 128), (129, 64, 2, 256), (7, 1, 1, 7)]
)
def test_padded_vocab_size(vocab: int, multiple: int, tp: int, expected: int) -> None:
    assert padded_vocab_size(vocab, multiple, tp) == expected


def test_transformer_engine_names_mean_the_same_parameters() -> None:
    prefix = "decoder.layers.5."
    assert canonical_name(prefix + "self_attention.linear_qkv.layer_norm_weight") == prefix + "input_layernorm.weight"
    assert canonical_name(prefix + "mlp.linear_fc1.layer_norm_weight") == prefix + "pre_mlp_layernorm.weight"
    assert canonical_name(prefix + "mlp.linear_fc1.weight") == prefix + "mlp.linear_fc1.weight"
    assert canonical_name(prefix + "mlp.experts.linear_fc2.weight13") == prefix + "mlp.experts.local_experts.13.linear_fc2.weight"


def test_tied_embeddings_have_no_head_in_the_checkpoint_but_one_on_the_last_stage() -> None:
    tied = replace(ARCH, tied_embeddings=True)
    assert "lm_head.weight" in hf_shapes(ARCH)
    assert "lm_head.weight" not in hf_shapes(tied)
    assert model_rows(tied)["output_layer.weight"].hf == ("model.embed_tokens.weight",)
    assert sum(math.prod(shape) for shape in hf_shapes(ARCH).values()) > sum(math.prod(shape) for shape in hf_shapes(tied).values())


def test_experts_have_rows_of_their_own_that_tensor_ranks_do_not_split() -> None:
    rows = [row for row in checkpoint_rows(architecture("MixtralForCausalLM")) if row.megatron.startswith("decoder.layers.1.mlp.")]
    assert [(row.megatron.removeprefix("decoder.layers.1.mlp."), row.expert, row.split_over_tensor_ranks) for row in rows] == [
        ("router.weight", None, False),
        *((f"experts.local_experts.{e}.linear_fc{part}.weight", e, False) for e in range(3) for part in (1, 2)),
    ]
    block = "model.layers.1.block_sparse_moe."
    assert rows[0].hf == (block + "gate.weight",)
    assert rows[3].hf == (block + "experts.1.w1.weight", block + "experts.1.w3.weight")
    assert rows[4].hf == (block + "experts.1.w2.weight",)


@pytest.mark.parametrize(
    ("name", "kind"), [("MixtralForCausalLM", "mixtral"), ("Qwen3MoeForCausalLM", "qwen3_moe"), ("MistralForCausalLM", "mistral")]
)
def test_the_tables_name_exactly_what_transformers_saves(tmp_path: Path, name: str, kind: str) -> None:
    tiny_models.save(kind, tmp_path)
    arch = Architecture.from_hf(tmp_path)
    assert arch.architecture == name
    saved = {key: header.shape for key, header in read_header(tmp_path / "model.safetensors").items()}
    assert hf_shapes(arch) == saved
