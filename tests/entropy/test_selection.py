"""The radix select: exactly the K largest, and of equal ones those that come first."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from megatron_entropic.entropy.records import Threshold, keys_below, numbers_of_keys, order_keys
from megatron_entropic.entropy.selection import (
    select_by_digits,
    select_by_partition,
    select_largest,
)
from megatron_entropic.entropy.shard import ShardRows, VocabShard
from tests.entropy.membership import kept

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def keep(logits_TV: Tensor, count: int) -> Tensor:
    """Membership by both ways of selection, which must agree on it."""
    width = logits_TV.shape[1]
    rows, shard = ShardRows(logits_TV, None, width), VocabShard.of(width, width, None)
    by_digits, by_partition = select_by_digits(rows, count, shard), select_by_partition(rows, count)
    assert torch.equal(by_digits.key_T, by_partition.key_T)
    assert torch.equal(by_digits.tie_end_T, by_partition.tie_end_T)
    chosen: Threshold = select_largest(rows, count, shard)
    assert all(torch.equal(a, b) for a, b in zip(chosen, by_digits, strict=True))
    return kept(chosen, logits_TV)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_keys_order_every_16_bit_number(dtype: torch.dtype) -> None:
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    numbers = numbers[~numbers.isnan()]
    by_value = numbers.double().argsort(stable=True)
    values, keys = numbers.double()[by_value], order_keys(numbers).long()[by_value]
    assert torch.equal(keys[1:] > keys[:-1], values[1:] > values[:-1])
    assert (keys.diff() >= 0).all()
    assert torch.equal(numbers_of_keys(order_keys(numbers), dtype), numbers)  # 0.0 == -0.0
    below = keys_below(order_keys(numbers[numbers != -torch.inf]))
    assert torch.isin(below, order_keys(numbers)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_keys_order_extremes(dtype: torch.dtype) -> None:
    limits = torch.finfo(dtype)
    tiny = limits.smallest_normal
    numbers = torch.tensor([-torch.inf, limits.min, -1.0, -tiny, 0.0, tiny, 1.0, limits.max, torch.inf], dtype=dtype)
    assert (order_keys(numbers).diff() > 0).all()
    assert order_keys(torch.tensor([-0.0], dtype=dtype)) == order_keys(torch.tensor([0.0], dtype=dtype))


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    width=st.integers(1, 70),
    distinct=st.sampled_from([1, 2, 5, 1000]),
    dtype=st.sampled_from(DTYPES),
    data=st.data(),
)
def test_keeps_what_a_stable_sort_puts_first(seed: int, width: int, distinct: int, dtype: torch.dtype, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, width))
    generator = torch.Generator().manual_seed(seed)
    levels = torch.cat([torch.randn(distinct, generator=generator) * 100, torch.tensor([-torch.inf, -0.0, 0.0])])
    logits_TV = levels[torch.randint(len(levels), (3, width), generator=generator)].to(dtype)
    leading = logits_TV.double().argsort(dim=1, descending=True, stable=True)[:, :count]
    assert torch.equal(keep(logits_TV, count), torch.zeros_like(logits_TV, dtype=torch.bool).scatter(1, leading, True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_wide_rows(dtype: torch.dtype) -> None:
    logits_TV = torch.randn(2, 50_000).to(dtype)
    logits_TV[1] = logits_TV[1].round()
    kept_TV = keep(logits_TV, 30_000)
    assert kept_TV.sum(1).tolist() == [30_000, 30_000]
    leading = logits_TV.argsort(dim=1, descending=True, stable=True)[:, :30_000]
    assert kept_TV.gather(1, leading).all()
