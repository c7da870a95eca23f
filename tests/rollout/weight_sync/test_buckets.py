"""Buckets and manifests: what travels must arrive whole and in order."""

import itertools
import json

import pytest
import torch

from megatron_entropic.rollout.weight_sync.buckets import buckets, entries_of, entry_of, manifest, pack, unpack
from megatron_entropic.rollout.weight_sync.checksum import weights_checksum


def some_weights() -> list[tuple[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        ("embed", torch.randn(9, 4, generator=generator)),
        ("norm", torch.randn(3, generator=generator).bfloat16()),  # 6 bytes: what follows is misaligned for float32
        ("scale", torch.randn((), generator=generator)),
        ("transposed", torch.randn(4, 6, generator=generator).t()),
        ("empty", torch.empty(0, 4)),
        ("steps", torch.arange(5)),
        ("head", torch.randn(9, 4, generator=generator).half()),
    ]


@pytest.mark.parametrize("limit", [1, 40, 150, 2**20])
def test_buckets_keep_order_and_limit(limit: int) -> None:
    weights = some_weights()
    made = list(buckets(weights, limit))
    assert [name for bucket in made for name, _ in bucket] == [name for name, _ in weights]
    for bucket in made:
        assert bucket
        assert len(bucket) == 1 or sum(tensor.nbytes for _, tensor in bucket) <= limit
    for one, other in itertools.pairwise(made):  # as few buckets as the limit allows
        assert sum(tensor.nbytes for _, tensor in one) + other[0][1].nbytes > limit


def test_buckets_are_lazy() -> None:
    produced = []

    def stream():
        for name, tensor in some_weights():
            produced.append(name)
            yield name, tensor

    next(buckets(stream(), 1))
    assert produced == ["embed", "norm"]


def test_a_name_that_comes_twice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'a'.*twice"):
        list(buckets([("a", torch.ones(1)), ("b", torch.ones(1)), ("a", torch.ones(1))]))


@pytest.mark.parametrize("limit", [1, 60, 2**20])
def test_pack_and_unpack_restore_every_tensor(limit: int) -> None:
    weights = some_weights()
    restored = []
    for bucket in buckets(weights, limit):
        described = json.loads(json.dumps(manifest(bucket)))
        entries = entries_of(described["names"], described["dtype_names"], described["shapes"])
        assert entries == [entry_of(name, tensor) for name, tensor in bucket]
        flat_M = pack(bucket)
        assert flat_M.numel() == sum(entry.nbytes for entry in entries)
        restored += unpack(flat_M, entries)
    for (name, tensor), (restored_name, restored_tensor) in zip(weights, restored, strict=True):
        assert (restored_name, restored_tensor.dtype, restored_tensor.shape) == (name, tensor.dtype, tensor.shape)
        assert torch.equal(restored_tensor, tensor)
    assert weights_checksum(restored) == weights_checksum(weights)


def test_a_manifest_of_unequal_lists_or_unknown_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        entries_of(["a", "b"], ["float32"], [[1], [1]])
    with pytest.raises(ValueError, match=r"'a'.*'nn'"):
        unpack(torch.zeros(4, dtype=torch.uint8), entries_of(["a"], ["nn"], [[1]]))
