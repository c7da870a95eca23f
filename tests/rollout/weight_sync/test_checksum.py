"""The checksum of weights: every change shows, nothing else does, and a GPU is not waited for."""

import zlib
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_entropic.rollout.weight_sync.buckets import buckets, entry_of, pack, unpack
from megatron_entropic.rollout.weight_sync.checksum import COLUMNS, WeightsChecksum, weights_checksum
from tests.rollout.weight_sync.test_buckets import some_weights

BUCKET = 64 * 2**20


class Operations(TorchDispatchMode):
    """Counts the operations that reach a device, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.largest = 0
        """Bytes of the largest tensor that one of them made and that is no view."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.counts[func.overloadpacket.__name__] += 1
        if isinstance(result, torch.Tensor) and not func.is_view:
            self.largest = max(self.largest, result.nbytes)
        return result

    @property
    def synchronisations(self) -> int:
        """Those that a GPU is waited for: numbers brought to the host."""
        return self.counts["_local_scalar_dense"] + self.counts["_to_copy"] + self.counts["nonzero"]


def oracle(weights: list[tuple[str, torch.Tensor]]) -> str:
    """In numpy, word by word."""
    crc = 0
    for name, tensor in weights:
        entry = entry_of(name, tensor)
        data = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        words = np.frombuffer(data + bytes(-len(data) % 4), dtype=np.int32).tolist()
        total = sum((2 * index + 1) * word for index, word in enumerate(words)) % 2**64
        crc = zlib.crc32(f"{entry.name}|{entry.dtype}|{entry.shape}|{total}\n".encode(), crc)
    return f"{crc:08x}-{len(weights)}"


@pytest.mark.parametrize("size", [0, 1, 3, COLUMNS, 4 * COLUMNS, 4 * COLUMNS + 1, 13 * COLUMNS - 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.float8_e4m3fn])
def test_checksum_is_the_weighted_sum_of_all_words(size: int, dtype: torch.dtype) -> None:
    bytes_M = torch.randint(0, 256, (size * dtype.itemsize,), dtype=torch.uint8, generator=torch.Generator().manual_seed(size))
    weights = [("weight", bytes_M.view(dtype)), *some_weights()]
    assert weights_checksum(weights) == oracle(weights)


def test_checksum_sees_every_kind_of_change() -> None:
    weights = some_weights()
    sums = {weights_checksum(weights), weights_checksum(weights[:-1]), weights_checksum(weights[::-1])}
    name, tensor = weights[0]
    flipped = tensor.clone()
    flipped.view(torch.int32)[3, 1] ^= 1  # the lowest bit of one value
    swapped = tensor.clone()
    swapped[[0, 1]] = swapped[[1, 0]]
    changed = [flipped, swapped, tensor.view(4, 9), tensor.view(torch.int32), tensor.neg()]
    sums |= {weights_checksum([(name, other), *weights[1:]]) for other in changed}
    sums.add(weights_checksum([("renamed", tensor), *weights[1:]]))
    assert len(sums) == 3 + len(changed) + 1
    assert weights_checksum(weights) in sums


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_checksum_sees_signs_that_change_together(dtype: torch.dtype) -> None:
    tensor = torch.randn(3 * COLUMNS, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = weights_checksum([("weight", tensor)])
    for places in ([1, 3], [3, 7], [0, 1, 2, 3], slice(1, None, 2), slice(3, None, 4)):
        other = tensor.clone()
        other[places] = -other[places]
        assert weights_checksum([("weight", other)]) != before, places


def test_checksum_does_not_depend_on_pieces_or_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = some_weights()
    whole = weights_checksum(weights)
    monkeypatch.setattr("megatron_entropic.rollout.weight_sync.checksum.COLUMNS", 5)
    assert weights_checksum(weights) == whole
    assert weights_checksum([(name, tensor.contiguous()) for name, tensor in weights]) == whole


@pytest.mark.parametrize("limit", [1, 60, 2**20])
def test_both_ends_agree_however_the_weights_are_cut_and_aligned(limit: int) -> None:
    weights = some_weights()
    sent, received = WeightsChecksum(), WeightsChecksum()
    for bucket in buckets(weights, limit):
        sent.update(bucket)
        received.update(unpack(pack(bucket), [entry_of(name, tensor) for name, tensor in bucket]))
    assert sent.hexdigest() == received.hexdigest() == weights_checksum(weights)


def test_a_bucket_costs_a_handful_of_operations_and_no_synchronisation() -> None:
    checksum = WeightsChecksum()
    weights = torch.ones(BUCKET // 2, dtype=torch.bfloat16)
    with Operations() as operations:
        checksum.update([("weight", weights)])
        updating = sum(operations.counts.values())
        assert operations.synchronisations == 0
        assert updating <= 32
        assert operations.largest <= BUCKET / 64
        checksum.hexdigest()
    assert operations.synchronisations <= 1
