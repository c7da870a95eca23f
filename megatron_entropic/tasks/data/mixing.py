"""Which source, epoch and place in it a draw takes: computed from the draw's number, the seed, the weights and the sizes alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from hashlib import sha256

from megatron_entropic.tasks.data.permutation import permutation


@dataclass(frozen=True, slots=True)
class Draw:
    """Row `place` of `source`, in its epoch number `epoch`."""

    source: int
    epoch: int
    place: int


class Mixture:
    """An endless stream of draws in which every source has its part: of any first n draws its weight's, to less than the number of
    sources before it. Within a source every row comes once an epoch, in an order of that epoch's own.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], seed: int) -> None:
        self.sizes, self.seed = list(sizes), seed
        exact = [Fraction(str(weight)) for weight in weights]
        self._parts = [exact[number] / sum(exact[number:]) for number in range(len(exact))]
        self._phases = [_phase(seed, number) for number in range(len(exact))]

    def __getitem__(self, number: int) -> Draw:
        """Draw `number`, from 0."""
        source, among = self._source(number)
        epoch, place = divmod(among, self.sizes[source])
        return Draw(source, epoch, permutation(self.sizes[source], f"data {self.seed} {source} {epoch}")[place])

    def _source(self, number: int) -> tuple[int, int]:
        """(source, how many of the draws before this one were its own): of what the sources before leave, each takes its part."""
        for source in range(len(self.sizes) - 1):
            before, after = self._taken(source, number), self._taken(source, number + 1)
            if after > before:
                return source, before
            number -= before
        return len(self.sizes) - 1, number

    def _taken(self, source: int, count: int) -> int:
        """How many of `count` draws, left by the sources before, this one takes."""
        part, phase = self._parts[source], self._phases[source]
        return (part.numerator * count * (1 << 32) + phase * part.denominator) // (part.denominator << 32)


def _phase(seed: int, source: int) -> int:
    """Where in its turn a source begins: 32 bits."""
    return int.from_bytes(sha256(f"data {seed} phase {source}".encode()).digest()[:4])
