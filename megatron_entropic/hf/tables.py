"""Hugging Face <-> Megatron parameters: one declarative table, of which an architecture has the rows that it needs.

A row says which Hugging Face tensors make one Megatron parameter and how. Names and shapes follow from the rows here; shards and
merges in mapping.py. No tensors in this file: a checkpoint can be checked without importing torch.
"""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from megatron_entropic.hf.architectures import Architecture, MoENames


class Layout(Enum):
    """Merge of a row's Hugging Face tensors into one parameter that is split over tensor-parallel ranks."""

    REPLICATED = "every rank holds it whole"
    ROW = "columns of the matrix (dimension 1) are split"
    QKV = "q, k, v interleaved by key/value head: [q...q k v] [q...q k v] ..., then dimension 0 is split"
    GATE_UP = "gate and up are each split on dimension 0; a rank holds its gate shard, then its up shard"
    VOCABULARY = "zero rows pad it to the padded vocabulary, then dimension 0 is split"


@dataclass(frozen=True)
class Row:
    """One Megatron parameter and the Hugging Face tensors it is made of; `{i}` is the global layer number, from 0.

    In a row that is to be repeated for every expert, `{e}` is the expert's global number, from 0. (A Megatron module counts the
    experts of its own rank; so do its parameters' names, which policy/weights.py translates.)
    """

    megatron: str
    hf: tuple[str, ...]
    layout: Layout
    expert: int | None = None
    """The global number of the expert that the parameter belongs to: only one expert-parallel rank holds it."""

    @property
    def split_over_tensor_ranks(self) -> bool:
        """Whether a tensor rank holds only a part. Experts are never split: to `shard` and `merge` they have one tensor rank."""
        return self.expert is None and self.layout is not Layout.REPLICATED


_M, _H = "decoder.layers.{i}.", "model.layers.{i}."
_EXPERT = _M + "mlp.experts.local_experts.{e}."
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
_MLP = (
    Row(_M + "mlp.linear_fc1.weight", (_H + "mlp.gate_proj.weight", _H + "mlp.up_proj.weight"), Layout.GATE_UP),
    Row(_M + "mlp.linear_fc2.weight", (_H + "mlp.down_proj.weight",), Layout.ROW),
)
_NORMS = (
    Row(_M + "input_layernorm.weight", (_H + "input_layernorm.weight",), Layout.REPLICATED),
    Row(_M + "pre_mlp_layernorm.weight", (_H + "post_attention_layernorm.weight",), Layout.REPLICATED),
)


def _moe(names: MoENames) -> tuple[Row, ...]:
    """Router and experts."""
    router, expert = _H + f"{names.block}.gate.weight", _H + f"{names.block}.experts.{{e}}."
    return (
        Row(_M + "mlp.router.weight", (router,), Layout.REPLICATED),
        Row(_EXPERT + "linear_fc1.weight", (f"{expert}{names.gate}.weight", f"{expert}{names.up}.weight"), Layout.GATE_UP),
        Row(_EXPERT + "linear_fc2.weight", (f"{expert}{names.down}.weight",), Layout.ROW),
    )


def layer_table(arch: Architecture) -> tuple[Row, ...]:
    """The rows of a layer of `arch`, with `{i}` for its number and `{e}` for an expert's."""
    attention = _ATTENTION + (_ATTENTION_BIAS if arch.qkv_bias else ()) + (_QK_NORM if arch.qk_norm else ())
    return attention + (_MLP if arch.moe_names is None else _moe(arch.moe_names)) + _NORMS


# Transformer Engine fuses these norms into the linear layer that follows them and names their weights after it.
FUSED_NORMS = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight",
}


# Its grouped experts are one layer with a weight for each expert of the rank.
_GROUPED_EXPERT = re.compile(r"(?<=\.mlp\.experts\.)(linear_fc[12])\.weight(\d+)$")


def canonical_name(parameter: str) -> str:
    """The table's name of a parameter that may carry a name of Transformer Engine's: of a fused norm, or of a grouped expert."""
    for fused, plain in FUSED_NORMS.items():
        if parameter.endswith(fused):
            return parameter.removesuffix(fused) + plain
    return _GROUPED_EXPERT.sub(r"local_experts.\2.\1.weight", parameter)


def checkpoint_rows(arch: Architecture) -> tuple[Row, ...]:
    """The rows of a whole checkpoint, in order: every Hugging Face tensor in exactly one of them."""
    layers = tuple(row for i in range(arch.num_layers) for row in _layer_rows(arch, i))
    return (_EMBEDDING, *layers, _FINAL_NORM) + (() if arch.tied_embeddings else (_HEAD,))


def _layer_rows(arch: Architecture, layer: int) -> Iterator[Row]:
    """The rows of one layer: of an expert's rows, one for each expert, all of expert 0 before those of expert 1."""
    for is_experts, rows in itertools.groupby(layer_table(arch), key=lambda row: row.megatron.startswith(_EXPERT)):
        block = tuple(rows)
        for expert in range(arch.num_experts or 0) if is_experts else (None,):
            for row in block:
                names = tuple(name.format(i=layer, e=expert) for name in row.hf)
                yield Row(row.megatron.format(i=layer, e=expert), names, row.layout, expert)


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
        "gate.weight": (arch.num_experts or 0, hidden),
        "w1.weight": (ffn, hidden),
        "w3.weight": (ffn, hidden),
        "w2.weight": (hidden, ffn),
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
