"""Blocks of rows shared out among threads, each of which works on its own block from beginning to end.

The threads inside torch's operations meet at the end of every operation. With a dozen short operations a block, that is thousands
of meetings a pass, and where another process uses one of the cores each may cost a time slice: measured on two cores beside
one busy process, 7 times the time of an idle machine. Threads that meet once a pass lose what the other process takes, no more.

Shapes: B rows of a block, V this rank's real columns.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from threading import Barrier

import torch
from torch import Tensor

from megatron_entropic.entropy.shard import ShardRows

BlockWork = Callable[[slice, Tensor, list[Tensor]], None]
"""Gets (positions among the T rows, raw_BV, buffers_BV); must touch nothing of other blocks. Runs without autograd."""


def for_each_block(rows: ShardRows, buffers: int, work: BlockWork) -> None:
    """Calls `work` for every block, with that many buffers; in as many threads as torch uses where the rows are in host memory."""
    blocks = iter(rows.block_slices())
    threads = max(1, min(torch.get_num_threads(), len(rows.block_slices()))) if rows.logits.is_cpu else 1

    def run(buffers_BV: list[Tensor]) -> None:
        with torch.no_grad():
            for block in blocks:  # a list's iterator gives each block to one thread only
                raw_BV = rows.read(block)
                work(block, raw_BV, [buffer_BV[: len(raw_BV)] for buffer_BV in buffers_BV])

    buffers_of_threads = [rows.buffers(buffers) for _ in range(threads)]
    if threads == 1:
        run(*buffers_of_threads)
    else:
        list(_pool(torch.get_num_threads(), os.getpid()).map(run, buffers_of_threads))


@lru_cache(maxsize=1)
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads in which torch's operations use no further threads. `process`: a fork does not inherit them."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="token-statistics", initializer=torch.set_num_threads, initargs=(1,))
    all_started = Barrier(threads)
    list(pool.map(lambda _: all_started.wait(), range(threads)))
    torch.set_num_threads(threads)  # it is also the default of threads yet to be made
    return pool
