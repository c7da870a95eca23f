"""A child process that is told to end when its parent is killed: no run goes on that nobody waits for."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1


def end_with_parent(signum: signal.Signals) -> Callable[[], None] | None:
    """For subprocess's `preexec_fn`: the child gets `signum` when this process ends, however it does. Linux alone; else None."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl  # found here: between fork and exec nothing is looked for
    parent = os.getpid()

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, signum)
        if os.getppid() != parent:  # it ended before the line above
            os.kill(os.getpid(), signum)

    return ask
