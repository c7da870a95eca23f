"""Hugging Face <-> Megatron parameters: one declarative table per architecture, and the layouts its rows name.

A row says which Hugging Face tensors make one Megatron parameter and how. Names and shapes follow from the rows here; shards and
merges in mapping.py. No tensors in this file: a checkpoint can be checked without importing torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from megatron_entropic.hf.architectures import Architecture


class Layout(Enum):
    """How the Hugging Face tensors of a row become one parameter that is split over tensor-parallel ranks."""

    REPLICATED = "every rank holds it whole"
    ROW = "columns of the matrix (dimension 1) are split"
    QKV = "q, k, v interleaved by key/value head: [q...q k v] [q...q k v] ..., then dimension 0 is split"
    GATE_UP = "gate and up are each split on dimension 0; a rank holds its gate shard, then its up shard"
    VOCABULARY = "zero rows pad it to the padded vocabulary, then dimension 0 is split"


@dataclass(frozen=True)
class Row:
    """One Megatron parameter and the Hugging Face tensors it is made of; `{i}` is the global layer number, from 0."""

    megatron: str
    hf: tuple[str, ...]
    layout: Layout


_M, _H = "decoder.layers.{i}.", "model.layers.{i}."
_QKV = tuple(_H + f"self_attn.{part}_proj.weight" for part in "qkv")
_QKV_BIAS = tuple(_H + f"self_attn.{part}_proj.bias" for part in "qkv")

_EMBEDDING = Row("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), Layout.VOCABULARY)
_HEAD = Row("output_layer.weight", ("lm_head.weight",), Layout.VOCABULARY)
_TIED_HEAD = Row("output_layer.weight", ("model.embed_tokens.weight",), Layout.VOCABULARY)
_FINAL_NORM = Row("decoder.final_layernorm.weight", ("model.norm.weight",), Layout.REPLICATED)

_ATTENTION = (
    Row(_M + "self_attention.linear_qkv.weight", _QKV, Layout.QKV),
    Row(_M + "self_attention.linear_proj.weight", (_H + "self_attn.o_proj.weight",), Layout.ROW),
)
_ATTENTION_BIAS = (Row(_M + "self_attention.linear_qkv.bias", _QKV_BIAS, Layout.QKV),)
_QK_NORM = (
    Row(_M + "self_attention.q_layernorm.weight", (_H + "self_attn.q_norm.weight",), Layout.REPLICATED),
    Row(_M + "self_attention.k_layernorm.weight", (_H + "self_attn.k_norm.weight",), Layout.REPLICATED),
)
_MLP_AND_NORMS = (
    Row(_M + "mlp.linear_fc1.weight", (_H + "mlp.gate_proj.weight", _H + "mlp.up_proj.weight"), Layout.GATE_UP),
    Row(_M + "mlp.linear_fc2.weight", (_H + "mlp.down_proj.weight",), Layout.ROW),
    Row(_M + "input_layernorm.weight", (_H + "input_layernorm.weight",), Layout.REPLICATED),
    Row(_M + "pre_mlp_layernorm.weight", (_H + "post_attention_layernorm.weight",), Layout.REPLICATED),
)

LAYER_TABLES: Mapping[str, tuple[Row, ...]] = {
    "LlamaForCausalLM": _ATTENTION + _MLP_AND_NORMS,
    "Qwen2ForCausalLM": _ATTENTION + _ATTENTION_BIAS + _MLP_AND_NORMS,
    "Qwen3ForCausalLM": _ATTENTION + _QK_NORM + _MLP_AND_NORMS,
}

# Transformer Engine fuses these norms into the linear layer that follows them and names their weights after it.
_FUSED_NORMS = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight",
}


def canonical_name(parameter: str) -> str:
    """The table's name of a parameter that may carry Transformer Engine's fused-norm name."""
    for fused, plain in _FUSED_NORMS.items():
        if parameter.endswith(fused):
            return parameter.removesuffix(fused) + plain
    return parameter


def checkpoint_rows(arch: Architecture) -> tuple[Row, ...]:
    """The rows of a whole checkpoint, in order: every Hugging Face tensor in exactly one of them."""
    layers = tuple(
        Row(row.megatron.format(i=i), tuple(name.format(i=i) for name in row.hf), row.layout)
        for i in range(arch.num_layers)
        for row in LAYER_TABLES[arch.architecture]
    )
    return (_EMBEDDING, *layers, _FINAL_NORM) + (() if arch.tied_embeddings else (_HEAD,))


def model_rows(arch: Architecture) -> dict[str, Row]:
    """The row of every Megatron parameter by canonical name; with tied embeddings also a last stage's own copy of them."""
    rows = {row.megatron: row for row in checkpoint_rows(arch)}
    return {**rows, _TIED_HEAD.megatron: _TIED_HEAD} if arch.tied_embeddings else rows


def hf_shapes(arch: Architecture) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a Hugging Face checkpoint, in checkpoint order."""
    hidden, ffn = arch.hidden_size, arch.ffn_hidden_size
    q, kv = arch.num_heads * arch.head_dim, arch.num_kv_heads * arch.head_dim
    by_suffix: dict[str, tuple[int, ...]] = {
        "embed_tokens.weight": (arch.vocab_size, hidden),
        "lm_head.weight": (arch.vocab_size, hidden),
        "q_proj.weight": (q, hidden),
        "k_proj.weight": (kv, hidden),
        "v_proj.weight": (kv, hidden),
        "q_proj.bias": (q,),
        "k_proj.bias": (kv,),
        "v_proj.bias": (kv,),
        "o_proj.weight": (hidden, q),
        "q_norm.weight": (arch.head_dim,),
        "k_norm.weight": (arch.head_dim,),
        "gate_proj.weight": (ffn, hidden),
        "up_proj.weight": (ffn, hidden),
        "down_proj.weight": (hidden, ffn),
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        "model.norm.weight": (hidden,),
    }
    return {
        name: next(shape for suffix, shape in by_suffix.items() if name.endswith(suffix))
        for row in checkpoint_rows(arch)
        for name in row.hf
    }


def padded_vocab_size(vocab: int, multiple: int, tp: int) -> int:
    """`vocab` rounded up to a multiple of `multiple` x `tp`, so that every tensor rank holds equally many rows."""
    step = multiple * tp
    return -(-vocab // step) * step
