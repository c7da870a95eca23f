"""Helpers of the tests on several ranks: the process group, a rank's columns, a count of collectives."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor

COLLECTIVES = (
    "all_reduce",
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_single",
    "reduce_scatter",
    "reduce_scatter_tensor",
    "reduce_scatter_single",
    "broadcast",
    "barrier",
    "all_to_all",
    "all_to_all_single",
)


def start_group() -> dist.ProcessGroup:
    """The group of all ranks of `run_ranks`, over gloo."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    group = dist.group.WORLD
    assert group is not None
    return group


def shard_of(whole: Tensor, group: dist.ProcessGroup, dim: int = -1) -> Tensor:
    """This rank's equal contiguous part of `whole` along `dim`, its own leaf."""
    return whole.detach().chunk(dist.get_world_size(group), dim)[dist.get_rank(group)].clone()


def equal_on_all_ranks(tensor: Tensor, group: dist.ProcessGroup) -> bool:
    """Whether every rank holds the same bits (NaN aside)."""
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, tensor.detach().contiguous(), group=group)
    return all(torch.equal(part, parts[0]) for part in parts)


@contextmanager
def counted_collectives() -> Iterator[Counter[str]]:
    """Counts the collectives called inside, by name; a name and its newer alias count as one."""
    counts: Counter[str] = Counter()

    def counting(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            counts["all_gather" if "all_gather" in name else "reduce_scatter" if "reduce_scatter" in name else name] += 1
            return real(*args, **kwargs)

        return call

    real = {name: getattr(dist, name) for name in COLLECTIVES if hasattr(dist, name)}
    with mock.patch.multiple(dist, **{name: counting(name, fn) for name, fn in real.items()}):
        yield counts
