"""Work of rank 0 for all ranks: the others wait for it however long it takes, get what it produced, and end with it when it fails.

Waits go over the host line, so no collective's time limit ends them; data moves by collectives once everybody is there.
"""

from collections.abc import Callable
from typing import Protocol, TypeVar

import torch.distributed as dist

from megatron_entropic.distributed.host_line import HostLine, host_line
from megatron_entropic.distributed.host_line import PeerEndedError as PeerEndedError
from megatron_entropic.distributed.host_line import PeerSilentError as PeerSilentError
from megatron_entropic.distributed.host_line import RankZeroError as RankZeroError
from megatron_entropic.system.stop_signal import Abandonable, Abandoned, StopRequested

T = TypeVar("T")

_ARRIVED, _NOTHING, _VALUE, _FAILED = b"A", b"N", b"V", b"F"
_LONGEST_REASON = 4000


class Ranked(Protocol):
    """Whatever knows which rank this is, such as Parallel."""

    @property
    def rank(self) -> int: ...


def from_rank_zero(parallel: Ranked, function: Callable[..., T], *args: object, doing: str = "rank 0") -> T:
    """Runs `function(*args)` on rank 0 and returns its result on every rank; `doing` says in errors what that was.

    The others wait as long as rank 0 lives. If it raises, rank 0 raises the same exception and every other rank RankZeroError. Other
    ranks that end or freeze meanwhile: PeerEndedError, PeerSilentError. Collectives: none but, for a result other than None, one
    object broadcast over the world, which begins when all ranks are there. The result must be picklable; it is this run's own.
    """
    line = host_line()
    if line is None:
        return function(*args)
    if parallel.rank:
        line.send(_ARRIVED)
        return _broadcast(None) if _outcome(line, doing) == _VALUE else None  # type: ignore[return-value]  # T includes None then
    try:
        value = function(*args)
        line.receive(f"all ranks to arrive after {doing}")
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]  # rank 0 shows the rest
        line.send(_FAILED, reason.encode()[:_LONGEST_REASON])
        raise
    line.send(_NOTHING if value is None else _VALUE)
    return value if value is None else _broadcast(value)


def _outcome(line: HostLine, doing: str) -> bytes:
    """The kind of the next frame from rank 0. Raises RankZeroError when it says that it failed."""
    kind, reason = line.receive(doing)[0]
    if kind == _FAILED:
        raise RankZeroError(reason.decode(errors="replace"))
    return kind


def _broadcast(value: T | None) -> T:
    boxed = [value]
    dist.broadcast_object_list(boxed, src=0)
    return boxed[0]  # type: ignore[return-value]  # rank 0's, not None


def meet(parallel: Ranked, doing: str) -> None:
    """Host barrier after work of each rank's own, `doing`, that may take any time. Makes no collective."""
    from_rank_zero(parallel, lambda: None, doing=doing)


def follow_rank_zero(parallel: Ranked, doing: str) -> None:
    """Lets the other ranks continue once rank 0 calls this too; rank 0 does not wait for them. Makes no collective.

    To be called before a collective that rank 0 comes to late, such as the next tensors of a stream that it reads at its own pace.
    """
    line = host_line()
    if line is None:
        return
    if parallel.rank == 0:
        line.send(_NOTHING)
    else:
        _outcome(line, doing)


def from_rank_zero_unless_stopped(parallel: Ranked, function: Callable[..., T], *args: object, doing: str) -> T:
    """As from_rank_zero, but a signal that asks rank 0 to stop breaks `function` off. Raises StopRequested then, on every rank."""

    def attempt() -> tuple[bool, T | None]:
        try:
            with Abandonable():
                return True, function(*args)
        except Abandoned:
            return False, None

    done, value = from_rank_zero(parallel, attempt, doing=doing)
    if not done:
        raise StopRequested("asked to stop; the rollouts under way are abandoned")
    return value  # type: ignore[return-value]  # T may include None
