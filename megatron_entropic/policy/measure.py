"""The one reduction: sums over tokens on the last pipeline stage become the same numbers on every rank of the run."""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_entropic.policy.parallel import Parallel


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


def share_from_last_stage(values: Tensor, parallel: Parallel) -> Tensor:
    """Adds `values` over the data x context ranks of the last stage, then hands the sum to every rank.

    Used for per-token values that each data-parallel rank knows for its own samples only (0 elsewhere).
    Collectives: one all-reduce over data x context on the last stage, one broadcast over the world.
    """
    if parallel.is_last_stage:
        dist.all_reduce(values, group=parallel.dp_group)
    dist.broadcast(values, src=parallel.last_stage_rank)
    return values
