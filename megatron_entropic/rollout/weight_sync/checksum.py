"""The checksum of an update's weights, which both ends compute where the tensors are.

Shapes: M bytes or words of a tensor, R rows of COLUMNS words each, B tensors of a bucket.
"""

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from megatron_entropic.rollout.types import NamedWeights
from megatron_entropic.rollout.weight_sync.buckets import Bucket, entry_of

COLUMNS = 2**12
"""Words of a row: enough rows and columns to keep a GPU busy, and both vectors small beside the words."""
_WORD_BYTES = 4
"""Half of what the sums hold: with words as long as those, a flipped sign bit would count 2^63 whatever its place, and two cancel."""


class WeightsChecksum:
    """Checksum over a stream of buckets; it depends on order, names, dtypes, shapes and every bit of the values.

    A tensor's words w_i (its bytes as 32-bit integers, zeros behind them) give sum_i (2 i + 1) w_i mod 2^64: odd factors make
    every change of one word count, and integer sums are the same on every device and in every order. Header and sum of each
    tensor are chained by CRC-32. How tensors are divided into buckets does not matter.
    """

    def __init__(self) -> None:
        self._headers: list[str] = []
        self._sums: list[Tensor] = []

    def update(self, bucket: Bucket) -> None:
        """Adds a bucket, whose tensors are on one device; they are free again after what is queued there. No synchronisation."""
        if not bucket:
            return
        for name, tensor in bucket:
            entry = entry_of(name, tensor)
            self._headers.append(f"{entry.name}|{entry.dtype}|{entry.shape}")
        self._sums.append(torch.stack([_word_sum(tensor.detach()) for _, tensor in bucket]))

    def hexdigest(self) -> str:
        """Of all buckets so far. The one synchronisation with the device."""
        sums_B: Sequence[int] = torch.cat(self._sums).tolist() if self._sums else ()
        crc = 0
        for header, total in zip(self._headers, sums_B, strict=True):
            crc = zlib.crc32(f"{header}|{total % 2**64}\n".encode(), crc)
        return f"{crc:08x}-{len(self._headers)}"


def weights_checksum(weights: NamedWeights) -> str:
    """The checksum that a server which received exactly `weights`, in this order, reports."""
    checksum = WeightsChecksum()
    for weight in weights:
        checksum.update([weight])
    return checksum.hexdigest()


def _word_sum(tensor: Tensor) -> Tensor:
    """sum_i (2 i + 1) w_i mod 2^64 of a tensor's words, [] int64 on its device.

    Word i = r COLUMNS + c counts 2 r COLUMNS in its row and 2 c + 1 in its column, so sums of rows and columns do: the words are
    read twice, and nothing of their size is written. What does not fill a row is weighted word by word.
    """
    words_M = _words(tensor)
    rows = words_M.numel() // COLUMNS
    total = _weighted(words_M[rows * COLUMNS :], 2 * rows * COLUMNS + 1, 2)
    if rows:
        words_RC = words_M[: rows * COLUMNS].view(rows, COLUMNS)
        total = total + _weighted(words_RC.sum(1), 0, 2 * COLUMNS) + _weighted(words_RC.sum(0), 1, 2)
    return total


def _weighted(values_M: Tensor, first: int, step: int) -> Tensor:
    """sum_i (first + step i) values_i mod 2^64; [] int64."""
    factors_M = torch.arange(first, first + step * values_M.numel(), step, device=values_M.device)
    return (values_M * factors_M).sum()


def _words(tensor: Tensor) -> Tensor:
    """The tensor's bytes as int32 [M], without a copy where they are contiguous, aligned and whole words."""
    bytes_M = tensor.contiguous().flatten().view(torch.uint8)
    if missing := -bytes_M.numel() % _WORD_BYTES:
        bytes_M = torch.cat([bytes_M, bytes_M.new_zeros(missing)])
    elif bytes_M.storage_offset() % _WORD_BYTES:
        bytes_M = bytes_M.clone()
    return bytes_M.view(torch.int32)
