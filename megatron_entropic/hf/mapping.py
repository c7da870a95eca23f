"""Whole Hugging Face tensors to a tensor-parallel rank's shard and back, by the layouts of tables.py.

All moves are copies, so import followed by export is bit-exact for every tensor-parallel size.

Shapes: V vocabulary, V_pad padded vocabulary, H hidden size, G key/value heads ("groups"), D head size.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from megatron_entropic.hf.architectures import Architecture
from megatron_entropic.hf.tables import Layout


def shard(layout: Layout, tensors: Sequence[Tensor], arch: Architecture, tp_rank: int, tp_size: int, padded_vocab: int) -> Tensor:
    """This tensor rank's shard of the Megatron parameter that the whole Hugging Face `tensors` of a row make.

    Same dtype and device as `tensors`; may be a view. `padded_vocab` is V_pad, used by Layout.VOCABULARY only.
    """
    if layout is Layout.GATE_UP:
        return torch.cat([tensor.chunk(tp_size, 0)[tp_rank] for tensor in tensors])
    if layout is Layout.QKV:
        return _interleave(tensors, arch).chunk(tp_size, 0)[tp_rank]
    (tensor,) = tensors
    if layout is Layout.REPLICATED:
        return tensor
    if layout is Layout.ROW:
        return tensor.chunk(tp_size, 1)[tp_rank]
    return _vocabulary_shard(tensor, tp_rank, padded_vocab // tp_size)


def merge(layout: Layout, shards: Sequence[Tensor], arch: Architecture) -> tuple[Tensor, ...]:
    """The whole Hugging Face tensors of a row from all tensor ranks' shards, in rank order; the inverse of `shard`."""
    if layout is Layout.GATE_UP:
        halves = [part.chunk(2, 0) for part in shards]
        return torch.cat([gate for gate, _ in halves]), torch.cat([up for _, up in halves])
    if layout is Layout.QKV:
        return _deinterleave(torch.cat(list(shards)), arch)
    if layout is Layout.REPLICATED:
        return (shards[0],)
    if layout is Layout.ROW:
        return (torch.cat(list(shards), 1),)
    return (torch.cat(list(shards))[: arch.vocab_size],)


def _interleave(qkv: Sequence[Tensor], arch: Architecture) -> Tensor:
    """q [G*(heads/G)*D, ...], k and v [G*D, ...] -> [G*(heads/G + 2)*D, ...], grouped by key/value head."""
    grouped = [part.reshape(arch.num_kv_heads, -1, *part.shape[1:]) for part in qkv]
    return torch.cat(grouped, 1).flatten(0, 1)


def _deinterleave(qkv: Tensor, arch: Architecture) -> tuple[Tensor, ...]:
    grouped = qkv.reshape(arch.num_kv_heads, -1, *qkv.shape[1:])
    q_rows = arch.num_heads // arch.num_kv_heads * arch.head_dim
    parts = torch.split(grouped, [q_rows, arch.head_dim, arch.head_dim], 1)
    return tuple(part.flatten(0, 1) for part in parts)


def _vocabulary_shard(tensor_VH: Tensor, tp_rank: int, rows: int) -> Tensor:
    own = tensor_VH[tp_rank * rows : (tp_rank + 1) * rows]
    padding = rows - own.shape[0]
    return torch.cat([own, own.new_zeros(padding, *tensor_VH.shape[1:])]) if padding else own
