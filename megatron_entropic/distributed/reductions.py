"""The reductions: sums over tokens on the last pipeline stage become the same numbers on every rank of the run."""

import math
import struct
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_entropic.distributed.parallel import Parallel

RESOLUTION = 2.0**-30
"""Of the fixed-point numbers that `reduce_control` adds."""
_LARGEST = 2.0**32
_ENTROPIES = 2
_COUNT_BITS, _FLAG_BITS = 38, 12


def reduce_control(sums: Mapping[str, Tensor], requested: float | None, parallel: Parallel) -> tuple[dict[str, float], float | None]:
    """Adds what control steers by over all tokens of the mini-batch; the same bits on every rank of every stage.

    The sums travel as 64-bit integers in units of RESOLUTION. Adding integers is exact in any order, so no rank can round
    differently from another, whatever the layout or the algorithm of the all-reduce.

    Args:
        sums: at most seven scalars by name: the count of tokens, two entropies, others. Meaningful on the last pipeline stage
            and equal over its tensor ranks. Every rank passes the same names in the same order.
        requested: rank 0 may hand a number to all ranks; the others' is ignored.
    Returns:
        (float64 sums by name, rank 0's number or None). The entropies are NaN when one of them is not finite or beyond 2^32
        on any rank; likewise the others.
    Collectives: one all-reduce over the world of 8 bytes a sum + 8.
    """
    silent = not parallel.is_last_stage or parallel.tp_rank != 0
    count, *local = [0.0 if silent else float(value) for value in sums.values()]
    parts = local[:_ENTROPIES], local[_ENTROPIES:]
    bad = [not all(math.isfinite(value) and abs(value) < _LARGEST for value in part) for part in parts]
    # The high bits of the count count the ranks that have a bad number, in entropies and in others.
    header = int(count) + (bad[0] << _COUNT_BITS) + (bad[1] << (_COUNT_BITS + _FLAG_BITS))
    fixed = [0 if spoilt else round(value / RESOLUTION) for part, spoilt in zip(parts, bad, strict=True) for value in part]
    request = _to_bits(requested) if parallel.rank == 0 and requested is not None else 0
    packed = torch.tensor([header, *fixed, request], dtype=torch.int64, device=parallel.device)
    dist.all_reduce(packed)
    header, *added, request = packed.tolist()
    spoilt_entropies = (header >> _COUNT_BITS) % (1 << _FLAG_BITS) > 0
    spoilt_others = header >> (_COUNT_BITS + _FLAG_BITS) > 0
    spoilt_by_place = [spoilt_entropies] * _ENTROPIES + [spoilt_others] * (len(added) - _ENTROPIES)
    values = [math.nan if spoilt else value * RESOLUTION for value, spoilt in zip(added, spoilt_by_place, strict=True)]
    count = float(header % (1 << _COUNT_BITS))
    return dict(zip(sums, [count, *values], strict=True)), _from_bits(request) if request else None


def _to_bits(number: float) -> int:
    """A float64's bits as an integer other than 0, so that 0 can mean "none"."""
    return int(struct.unpack("<q", struct.pack("<d", number or -0.0))[0])


def _from_bits(bits: int) -> float:
    return float(struct.unpack("<d", struct.pack("<q", bits))[0]) + 0.0


def reduce_sums(sums: Mapping[str, Tensor], maxima: Mapping[str, Tensor], parallel: Parallel) -> dict[str, float]:
    """Adds `sums` and maximises `maxima` over the data x context ranks and hands the results to every rank of every stage.

    Args:
        sums, maxima: scalars by name, meaningful on the last pipeline stage (equal over tensor ranks). Every rank passes
            the same names in the same order; the other stages' values are ignored.
    Returns:
        float64 results by name, the same bits on every rank.
    Collectives: two all-reduces over data x context on the last stage, one broadcast over the world; 8 bytes a name.
    """
    device = parallel.device
    added = torch.stack([sums[name].detach().double() for name in sums]).to(device)
    largest = torch.stack([maxima[name].detach().double() for name in maxima]).to(device)
    if parallel.is_last_stage:
        dist.all_reduce(added, group=parallel.dp_group)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=parallel.dp_group)
    # All-reduce may round differently on different ranks; one rank's result is everybody's.
    everything = torch.cat([added, largest])
    dist.broadcast(everything, src=parallel.last_stage_rank)
    return dict(zip([*sums, *maxima], everything.tolist(), strict=True))


def broadcast_from_last_stage(values: Tensor, parallel: Parallel) -> Tensor:
    """Adds `values` over the data x context ranks of the last stage, then hands the sum to every rank.

    Used for per-token values that each data-parallel rank knows for its own samples only (0 elsewhere).
    Collectives: one all-reduce over data x context on the last stage, one broadcast over the world.
    """
    if parallel.is_last_stage:
        dist.all_reduce(values, group=parallel.dp_group)
    dist.broadcast(values, src=parallel.last_stage_rank)
    return values
