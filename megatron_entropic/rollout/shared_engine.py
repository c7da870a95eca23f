"""One engine for all ranks: rank 0 drives it, every rank gets what it produced, and a failure ends all of them cleanly."""

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from megatron_entropic.policy.engine import Policy
from megatron_entropic.policy.parallel import Parallel
from megatron_entropic.rollout.types import NamedWeights
from megatron_entropic.stop_signal import Abandonable, Abandoned, StopRequested

T = TypeVar("T")


class RankZeroError(RuntimeError):
    """Rank 0 failed and reports why itself; this rank only stops with it."""


def from_rank_zero(parallel: Parallel, function: Callable[..., T], *args: object) -> T:
    """Runs `function(*args)` on rank 0 and returns its result on every rank.

    If it raises, rank 0 raises the same exception and every other rank RankZeroError, instead of waiting for its timeout.
    Collectives: one object broadcast over the world. The result must be picklable; it comes from this run's own rank 0.
    """
    outcome: list[tuple[T | None, str | None]] = [(None, None)]
    failure: Exception | None = None
    if parallel.rank == 0:
        try:
            outcome[0] = (function(*args), None)
        except Exception as error:  # noqa: BLE001 - re-raised below, once the other ranks know
            failure = error
            outcome[0] = (None, f"{type(error).__name__}: {error}")
    dist.broadcast_object_list(outcome, src=0)
    if failure is not None:
        raise failure
    value, reason = outcome[0]
    if reason is not None:
        raise RankZeroError(reason)
    return value  # type: ignore[return-value]  # T may include None


def from_rank_zero_unless_stopped(parallel: Parallel, function: Callable[..., T], *args: object) -> T:
    """As from_rank_zero, but a signal that asks rank 0 to stop breaks `function` off. Raises StopRequested then, on every rank."""

    def attempt() -> tuple[bool, T | None]:
        try:
            with Abandonable():
                return True, function(*args)
        except Abandoned:
            return False, None

    done, value = from_rank_zero(parallel, attempt)
    if not done:
        raise StopRequested("asked to stop; the rollouts under way are abandoned")
    return value  # type: ignore[return-value]  # T may include None


def weights_to_rank_zero(parallel: Parallel, policy: Policy, consume: Callable[[NamedWeights], object]) -> None:
    """Streams the policy's whole weights through `consume` on rank 0. Collective over the world.

    Producing the stream is collective, so it is read to its end on every rank even when `consume` fails half-way.
    """
    stream = policy.weights()

    def consume_all() -> None:
        try:
            consume(stream)
        finally:
            for _ in stream:
                pass

    if parallel.rank:
        for _ in stream:
            pass
    from_rank_zero(parallel, consume_all)
