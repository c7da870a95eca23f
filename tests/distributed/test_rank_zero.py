"""Ranks wait for rank 0 however long it takes, and never for one that is gone."""

import os
import signal
import socket
import time
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from megatron_entropic.distributed import host_line
from megatron_entropic.distributed.host_line import PeerEndedError, PeerSilentError, RankZeroError
from megatron_entropic.distributed.rank_zero import follow_rank_zero, from_rank_zero, meet
from tests.run_ranks import run_ranks

pytestmark = pytest.mark.distributed

LIMIT_S = 1.0
LONG_S = 2.5
"""Longer than any collective may take here."""


def join() -> SimpleNamespace:
    """This rank in a gloo group whose collectives may take LIMIT_S."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=LIMIT_S))
    host_line.host_line()
    return SimpleNamespace(rank=dist.get_rank())


def outcome(function: Any, *args: Any, **kwargs: Any) -> tuple[str, Any]:
    """The name of what was raised and its message, or "returned" and the value."""
    try:
        return "returned", function(*args, **kwargs)
    except Exception as error:  # noqa: BLE001 - compared by the test
        return type(error).__name__, str(error)


def slow_work_then_a_collective() -> tuple[Any, float]:
    ranks = join()
    value = from_rank_zero(ranks, lambda: time.sleep(LONG_S) or {"rollouts": 3})
    total = torch.ones(1)
    dist.all_reduce(total)
    return value, float(total)


def test_work_of_rank_zero_may_take_longer_than_a_collective() -> None:
    assert run_ranks(slow_work_then_a_collective, 3) == [({"rollouts": 3}, 3.0)] * 3


def one_rank_comes_late(late: int) -> float:
    ranks = join()
    if ranks.rank == late:
        time.sleep(LONG_S)
    meet(ranks, "every rank to read")
    total = torch.ones(1)
    dist.all_reduce(total)
    return float(total)


@pytest.mark.parametrize("late", [0, 2])
def test_no_rank_is_in_a_collective_while_another_reads(late: int) -> None:
    assert run_ranks(one_rank_comes_late, 3, late) == [3.0] * 3


def rank_zero_reads_a_stream_slowly() -> list[float]:
    ranks = join()
    sums = []
    for piece in range(2):
        if ranks.rank == 0:
            time.sleep(LONG_S / 2)
        follow_rank_zero(ranks, "the stream")
        total = torch.full((1,), float(piece))
        dist.all_reduce(total)
        sums.append(float(total))
    return sums


def test_a_stream_follows_the_pace_of_rank_zero() -> None:
    assert run_ranks(rank_zero_reads_a_stream_slowly, 2) == [[0.0, 2.0]] * 2


def rank_zero_fails() -> tuple[str, Any]:
    def fail() -> None:
        raise ValueError("no server")

    return outcome(from_rank_zero, join(), fail)


def test_a_failure_of_rank_zero_reaches_all_at_once() -> None:
    assert run_ranks(rank_zero_fails, 2) == [("ValueError", "no server"), ("RankZeroError", "ValueError: no server")]


def rank_ends_early(gone: int) -> tuple[str, Any]:
    ranks = join()
    if ranks.rank == gone:
        return "ended", ""
    return outcome(meet, ranks, "the end")


def test_ranks_stop_with_rank_zero() -> None:
    ended, (kind, message) = run_ranks(rank_ends_early, 2, 0)
    assert ended[0] == "ended"
    assert kind == RankZeroError.__name__
    assert message.startswith("rank 0 (pid ")
    assert "ended while this rank waited for the end" in message


def test_all_ranks_stop_with_one_that_ended() -> None:
    zero, _one, two = run_ranks(rank_ends_early, 3, 1)
    assert zero[0] == PeerEndedError.__name__
    assert zero[1].startswith("rank 1 (pid ")
    assert two[0] == RankZeroError.__name__
    assert "rank 1 (pid " in two[1]


def freeze_rank_zero() -> tuple[str, Any]:
    ranks = join()
    pid = from_rank_zero(ranks, os.getpid)
    if ranks.rank == 0:
        return outcome(meet, ranks, "the others")
    os.kill(pid, signal.SIGSTOP)
    start = time.monotonic()
    found = outcome(meet, ranks, "a frozen rank")
    waited = time.monotonic() - start
    os.kill(pid, signal.SIGCONT)
    assert waited < 10 * LIMIT_S
    return found


def test_a_frozen_rank_zero_is_named() -> None:
    _, (kind, message) = run_ranks(freeze_rank_zero, 2)
    assert kind == PeerSilentError.__name__
    assert message.startswith("rank 0 (pid ")
    assert "no sign of life for 1 s (parallel.timeout_s)" in message


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n", b"H\0\0\0\x0awrong 1 me", b""])
def test_a_stranger_is_not_let_in(said: bytes) -> None:
    near, far = socket.socketpair()
    far.sendall(said)
    far.shutdown(socket.SHUT_WR)
    assert host_line._greeted(near, "right") is None
    assert near.fileno() == -1
    far.close()


def test_a_rank_alone_waits_for_nobody() -> None:
    alone = SimpleNamespace(rank=0)
    meet(alone, "nobody")
    follow_rank_zero(alone, "nobody")
    assert from_rank_zero(alone, lambda: 3) == 3
