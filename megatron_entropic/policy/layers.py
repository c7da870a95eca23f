"""The layers Megatron-Core's local spec lacks: RMSNorm under sequence parallelism and attention over packed sequences.

Shapes: T packed tokens of a micro-batch, B its sequences, A those of a bucket, L the longest of these, Q query heads and G
key/value heads of this rank, D head size.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from megatron_entropic.policy.experts import use_router

MAX_PADDED_WORK = 1.75
"""Padding never multiplies the attention work of a bucket (the sum of squared lengths), nor its tokens, by more than this."""


class RMSNorm(nn.RMSNorm):
    """RMSNorm whose weight tells Megatron-Core to sum its gradient over tensor ranks under sequence parallelism."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__(hidden_size, eps=eps, device=torch.cuda.current_device(), dtype=config.params_dtype)
        setattr(self.weight, "sequence_parallel", config.sequence_parallel)  # noqa: B010 - Megatron-Core's protocol


@dataclass(frozen=True)
class PaddedBucket:
    """Sequences of similar length, to be padded to the longest and attended to as one batch."""

    tokens_AL: Tensor
    """int64: which packed token is at [a, l]; padding, at a row's end, repeats the row's last token."""


@dataclass(frozen=True)
class Packing:
    """Indices that spread packed tokens over padded buckets and back; made once for each micro-batch."""

    buckets: tuple[PaddedBucket, ...]
    positions_T: Tensor | None
    """int64: where each packed token is in the concatenated, flattened buckets; None when they lie there as they are."""


def make_packing(cu_seqlens: Sequence[int], device: torch.device) -> Packing:
    """Buckets the sequences between cumulative lengths by length, the fewest buckets that keep to MAX_PADDED_WORK."""
    lengths = [end - start for start, end in itertools.pairwise(cu_seqlens)]
    groups = _bucketed(lengths)
    starts_B = torch.tensor(cu_seqlens[:-1], dtype=torch.int64)
    lengths_B = torch.tensor(lengths, dtype=torch.int64)
    positions_T = torch.empty(cu_seqlens[-1], dtype=torch.int64)
    buckets, offset = [], 0
    for group in groups:
        group_A = torch.tensor(sorted(group))
        longest = lengths[group[0]]
        column_L = torch.arange(longest)
        tokens_AL = starts_B[group_A, None] + torch.minimum(column_L, lengths_B[group_A, None] - 1)
        real_AL = column_L < lengths_B[group_A, None]
        positions_T[tokens_AL[real_AL]] = offset + real_AL.flatten().nonzero().squeeze(1)
        buckets.append(PaddedBucket(tokens_AL.to(device)))
        offset += tokens_AL.numel()
    unmoved = offset == cu_seqlens[-1] and torch.equal(positions_T, torch.arange(offset))
    return Packing(tuple(buckets), None if unmoved else positions_T.to(device))


def _bucketed(lengths: Sequence[int]) -> list[list[int]]:
    """Indices of the non-empty sequences in buckets, longest first; padded work n L^2 <= MAX_PADDED_WORK * sum l^2 in each.

    The bound holds for tokens too: sum l^2 <= L sum l, so n L <= MAX_PADDED_WORK * sum l.
    """
    groups: list[list[int]] = []
    longest = work = 0
    for i in sorted((i for i, length in enumerate(lengths) if length), key=lambda i: -lengths[i]):
        if groups and longest**2 * (len(groups[-1]) + 1) <= MAX_PADDED_WORK * (work + lengths[i] ** 2):
            groups[-1].append(i)
            work += lengths[i] ** 2
        else:
            groups.append([i])
            longest, work = lengths[i], lengths[i] ** 2
    return groups


def packing_of(params: PackedSeqParams) -> Packing:
    """The packing of a micro-batch's sequences, made by the first layer that asks and kept with `params` for the others."""
    packing = getattr(params, "_packing", None)
    if packing is None:
        packing = make_packing(params.cu_seqlens_q.tolist(), params.cu_seqlens_q.device)
        params._packing = packing
    return cast(Packing, packing)


class PackedAttention(nn.Module):
    """Causal self-attention within each packed sequence, by torch's fused scaled-dot-product attention on padded buckets.

    Padding is harmless: it ends the rows, so under a causal mask no real token sees it, and its outputs are dropped.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: ProcessGroupCollection | None = None,
    ) -> None:
        super().__init__()
        if attn_mask_type is not AttnMaskType.causal or attention_type != "self" or config.context_parallel_size > 1:
            raise ValueError("PackedAttention is causal self-attention without context parallelism")
        self.softmax_scale = softmax_scale

    def forward(
        self,
        query_TQD: Tensor,
        key_TGD: Tensor,
        value_TGD: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        """Returns [T, Q*D] in the query's dtype. The mask is in `packed_seq_params`; `attention_mask` must be None."""
        if packed_seq_params is None or attention_mask is not None or attention_bias is not None:
            raise ValueError("PackedAttention takes packed sequences (packed_seq_params), and no attention_mask or bias")
        packing = packing_of(packed_seq_params)
        outputs = [self._attend(query_TQD, key_TGD, value_TGD, bucket.tokens_AL) for bucket in packing.buckets]
        flat = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return flat if packing.positions_T is None else flat.index_select(0, packing.positions_T)

    def _attend(self, query_TQD: Tensor, key_TGD: Tensor, value_TGD: Tensor, tokens_AL: Tensor) -> Tensor:
        count, longest = tokens_AL.shape
        q, k, v = (
            x.index_select(0, tokens_AL.flatten()).view(count, longest, *x.shape[1:]).transpose(1, 2)
            for x in (query_TQD, key_TGD, value_TGD)
        )
        out_AQLD = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.softmax_scale, enable_gqa=True)
        return out_AQLD.transpose(1, 2).reshape(count * longest, -1)


def local_block_spec(config: TransformerConfig) -> TransformerBlockSubmodules:
    """The transformer block of this pipeline stage made of Megatron-Core's own layers and the two above."""
    layer: ModuleSpec = get_gpt_layer_local_spec(
        num_experts=config.num_moe_experts, moe_grouped_gemm=False, qk_layernorm=config.qk_layernorm, normalization="RMSNorm"
    )
    if config.num_moe_experts is not None:
        use_router(layer)
        # Saved as Transformer Engine's layers save it: before experts it is fused into nothing.
        layer.submodules.sharded_state_dict_keys_map.pop("pre_mlp_layernorm.")
    layer.submodules.input_layernorm = RMSNorm
    layer.submodules.pre_mlp_layernorm = RMSNorm
    attention: Any = layer.submodules.self_attention.submodules
    attention.core_attention = PackedAttention
    if config.qk_layernorm:
        attention.q_layernorm = RMSNorm
        attention.k_layernorm = RMSNorm
    return TransformerBlockSubmodules(layer_specs=[layer] * get_num_layers_to_build(config), layer_norm=RMSNorm)
