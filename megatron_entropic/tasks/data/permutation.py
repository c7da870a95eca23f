"""A seeded order of n things of which any place can be asked for alone: nothing as long as the order is made for many things."""

import random
from functools import lru_cache
from hashlib import sha256

SMALL = 1 << 14
"""Up to so many things the order is a shuffled list, one of as many as there can be."""
_ROUNDS = 6
_MASK = (1 << 64) - 1


class Permutation:
    """Place to thing, both from 0 to below n. The same (n, key) is the same order everywhere.

    Above SMALL: a Feistel network over the next even power of two, walked along until it comes back into the range (fewer than
    four times on average).
    """

    def __init__(self, n: int, key: str) -> None:
        self.n = n
        digest = sha256(key.encode()).digest()
        self._small: list[int] | None = None
        if n <= SMALL:
            self._small = list(range(n))
            random.Random(int.from_bytes(digest)).shuffle(self._small)
            return
        self._half = ((n - 1).bit_length() + 1) // 2
        self._low = (1 << self._half) - 1
        self._keys = [int.from_bytes(sha256(digest + bytes([number])).digest()[:8]) for number in range(_ROUNDS)]

    def __getitem__(self, place: int) -> int:
        if self._small is not None:
            return self._small[place]
        at = self._network(place)
        while at >= self.n:
            at = self._network(at)
        return at

    def _network(self, value: int) -> int:
        left, right = value >> self._half, value & self._low
        for key in self._keys:
            left, right = right, left ^ (_mixed(right ^ key) & self._low)
        return left << self._half | right


def _mixed(value: int) -> int:
    """A 64-bit word of which every bit depends on every bit of `value` (the finalizer of splitmix64)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


@lru_cache(maxsize=64)
def permutation(n: int, key: str) -> Permutation:
    """The order, kept for a while: that of an epoch is asked for again and again."""
    return Permutation(n, key)
