"""The records that the torch path and the Triton kernels share, and the order-preserving keys that selection compares.

Shapes: T unmasked tokens, B rows of a block, K = 3 sums (5 with a clamp).
"""

from typing import NamedTuple

import torch
from torch import Tensor

LOWEST = -1e4
"""exp of this is 0 in float32 and float64: raising d to it changes no sum, and keeps 0 * -inf from making a NaN."""

DIGITS = 256
"""Values of a byte."""
KEY_DTYPES = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers as wide as the logits, by bytes."""


class Moments(NamedTuple):
    """One rank's columns of each row, relative to that rank's own maximum.

    Attributes:
        max_T: largest logit as given (not divided by the temperature); -inf when the rank holds no finite logit.
        sums_KT: sum exp(d), sum d exp(d), the target's d (0 when another rank holds it); then the first two over the
            K largest logits when there is a clamp.
        squares_2T: sum exp(2d), sum d exp(2d); None where the mean lowering is not asked for.
    """

    max_T: Tensor
    sums_KT: Tensor
    squares_2T: Tensor | None


class TokenScalars(NamedTuple):
    """Per-token results, equal on all tensor ranks, and all that the gradient needs beside the logits.

    Attributes:
        max_T: global maximum of the logits as given.
        log_sum_T, entropy_T: log S about that maximum; H in nats.
        kept_log_sum_T, kept_entropy_T: the same over the K largest logits; None without a selection.
    """

    max_T: Tensor
    log_sum_T: Tensor
    entropy_T: Tensor
    kept_log_sum_T: Tensor | None
    kept_entropy_T: Tensor | None

    def at(self, block: slice) -> "TokenScalars":
        return TokenScalars(*(None if x_T is None else x_T[block] for x_T in self))  # type: ignore[arg-type]


class UpstreamGradients(NamedTuple):
    """Gradients of the loss with respect to each result, [T] in the statistics' dtype; None where it is unused."""

    log_prob_T: Tensor | None
    entropy_T: Tensor | None
    kept_entropy_T: Tensor | None

    def at(self, block: slice) -> "UpstreamGradients":
        return UpstreamGradients(*(None if x_T is None else x_T[block] for x_T in self))


class Threshold(NamedTuple):
    """Mask of this rank's columns among a row's K largest: above `key_T`, or equal to it and left of `tie_end_T`.

    Attributes:
        key_T: integer key of the K-th largest logit, in the key dtype of the logits; equal on all ranks.
        tie_end_T: int32 column of this rank; columns before it whose key equals `key_T` are kept.
    """

    key_T: Tensor
    tie_end_T: Tensor

    def at(self, block: slice) -> "Threshold":
        return Threshold(self.key_T[block], self.tie_end_T[block])


def order_keys(raw: Tensor) -> Tensor:
    """Signed integers of the logits' width that compare as the logits do; -0.0 and 0.0 get the same key."""
    bits = raw.view(KEY_DTYPES[raw.element_size()])
    sign = bits >> (8 * raw.element_size() - 1)  # 0 or -1
    key = bits ^ (sign & torch.iinfo(bits.dtype).max)
    return key + (key == -1)  # only -0.0 has key -1, just below the 0 of 0.0


def numbers_of_keys(key: Tensor, dtype: torch.dtype) -> Tensor:
    """The numbers of type `dtype` whose `order_keys` these are."""
    sign = key >> (8 * key.element_size() - 1)
    return (key ^ (sign & torch.iinfo(key.dtype).max)).view(dtype)


def keys_below(key: Tensor) -> Tensor:
    """The next smaller key that a number has: no number has -1, and below -inf come the keys of NaN."""
    return key - 1 - (key == 0).to(key.dtype)
