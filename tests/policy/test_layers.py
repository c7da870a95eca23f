"""Attention over packed sequences equals attention over each sequence alone, whatever the lengths."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_entropic.policy.layers import MAX_PADDED_WORK, PackedAttention, make_packing, packing_of

CPU = torch.device("cpu")


def attention() -> PackedAttention:
    return PackedAttention(TransformerConfig(num_layers=1, hidden_size=16, num_attention_heads=4), 1, AttnMaskType.causal, "self")


def params_of(lengths: list[int]) -> PackedSeqParams:
    cu_seqlens = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    return PackedSeqParams("thd", cu_seqlens, cu_seqlens, max_seqlen_q=max(lengths), max_seqlen_kv=max(lengths))


def one_by_one(query_TQD: torch.Tensor, key_TGD: torch.Tensor, value_TGD: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    parts = zip(*(x.split(lengths) for x in (query_TQD, key_TGD, value_TGD)), strict=True)
    outputs = [
        F.scaled_dot_product_attention(*(x.transpose(0, 1) for x in part), is_causal=True, enable_gqa=True).transpose(0, 1)
        for part in parts
    ]
    return torch.cat(outputs).flatten(1)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any))
def test_outputs_and_gradients_equal_each_sequence_alone(lengths: list[int]) -> None:
    generator = torch.Generator().manual_seed(len(lengths))
    inputs = [torch.randn(sum(lengths), heads, 8, generator=generator, dtype=torch.float64) for heads in (4, 2, 2)]
    weight = torch.randn(sum(lengths), 32, generator=generator, dtype=torch.float64)
    results = []
    for packed in (True, False):
        q, k, v = (x.clone().requires_grad_() for x in inputs)
        output = attention()(q, k, v, None, packed_seq_params=params_of(lengths)) if packed else one_by_one(q, k, v, lengths)
        (output * weight).sum().backward()
        results.append((output, q.grad, k.grad, v.grad))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


@given(st.lists(st.integers(0, 300), min_size=1, max_size=60).filter(any))
def test_padding_is_bounded_and_every_token_has_its_place(lengths: list[int]) -> None:
    packing = make_packing([0, *itertools.accumulate(lengths)], CPU)
    everywhere = torch.cat([bucket.tokens_AL.flatten() for bucket in packing.buckets])
    places = torch.arange(sum(lengths)) if packing.positions_T is None else packing.positions_T
    assert torch.equal(everywhere[places], torch.arange(sum(lengths)))
    for bucket in packing.buckets:
        tokens = bucket.tokens_AL.unique().numel()
        assert bucket.tokens_AL.numel() <= MAX_PADDED_WORK * tokens


def test_equal_lengths_are_not_moved_and_one_long_sequence_stays_alone() -> None:
    assert make_packing([0, 5, 10, 15], CPU).positions_T is None
    buckets = make_packing([0, *itertools.accumulate([14] * 20 + [500] + [14] * 20)], CPU).buckets
    assert [tuple(bucket.tokens_AL.shape) for bucket in buckets] == [(1, 500), (40, 14)]


def test_the_packing_is_made_once_for_all_layers() -> None:
    params = params_of([3, 4])
    assert packing_of(params) is packing_of(params)


def test_what_it_does_not_compute_is_refused() -> None:
    config = TransformerConfig(num_layers=1, hidden_size=16, num_attention_heads=4)
    with pytest.raises(ValueError, match="causal self-attention"):
        PackedAttention(config, 1, AttnMaskType.padding, "self")
    x = torch.zeros(3, 4, 8)
    with pytest.raises(ValueError, match="packed_seq_params"):
        attention()(x, x, x, None)
