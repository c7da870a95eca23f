"""Runs a function on several ranks, each a forked process, and brings back every rank's result or the first failure."""

import ctypes
import multiprocessing
import os
import signal
import socket
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from typing import Any

import torch

from megatron_entropic.distributed.host_line import close_host_line

torch.set_num_threads(1)  # before any fork: a parent with thread pools must not be forked

_PR_SET_PDEATHSIG = 1
_Rank = tuple[ForkProcess, Connection]


class RankFailedError(AssertionError):
    """A rank raised, died or took too long; the message says which and holds its traceback."""


def run_ranks(fn: Callable[..., Any], world_size: int, *args: Any, timeout: float = 120.0) -> list[Any]:
    """Calls `fn(*args)` in `world_size` forked processes with torchrun's environment; returns their results in rank order.

    Results must be picklable. The first rank that fails ends all of them and its traceback is raised as RankFailedError, as is a
    run longer than `timeout` seconds. No process outlives the call, or this process.
    """
    context = multiprocessing.get_context("fork")
    port = _free_port()
    ranks: list[_Rank] = []
    try:
        for rank in range(world_size):
            receiving, sending = context.Pipe(duplex=False)
            process = context.Process(target=_run_rank, args=(fn, args, rank, world_size, port, sending, os.getpid()), daemon=True)
            process.start()
            sending.close()
            ranks.append((process, receiving))
        return _results(ranks, time.monotonic() + timeout, timeout)
    finally:
        for process, receiving in ranks:
            process.kill()
            process.join()
            receiving.close()


def _results(ranks: list[_Rank], deadline: float, timeout: float) -> list[Any]:
    results: dict[int, Any] = {}
    waiting = {receiving: rank for rank, (_, receiving) in enumerate(ranks)}
    while waiting:
        ready = wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            raise RankFailedError(f"ranks {sorted(waiting.values())} did not finish within {timeout} s")
        for receiving in ready:
            assert isinstance(receiving, Connection)
            rank = waiting.pop(receiving)
            try:
                failure, result = receiving.recv()
            except EOFError:
                process = ranks[rank][0]
                process.join(timeout=5)
                raise RankFailedError(f"rank {rank} died with exit code {process.exitcode}") from None
            if failure is not None:
                raise RankFailedError(f"rank {rank} of {len(ranks)}:\n{failure}")
            results[rank] = result
    for process, _ in ranks:
        process.join(timeout=max(0.1, deadline - time.monotonic()))
    return [results[rank] for rank in range(len(ranks))]


def _run_rank(
    fn: Callable[..., Any], args: tuple[Any, ...], rank: int, world_size: int, port: int, sending: Connection, parent: int
) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    try:
        answer = (None, fn(*args))
        close_host_line()
    except BaseException:  # noqa: BLE001 - reported to the parent, which raises it
        answer = (traceback.format_exc(), None)
    sending.send(answer)
    sending.close()
    # Skip the parent's atexit handlers and gloo's destructors: they wait for peers that may be gone.
    os._exit(0)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
