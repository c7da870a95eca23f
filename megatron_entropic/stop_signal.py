"""SIGTERM and SIGUSR1 ask a rank to save and end; SIGINT, or asking once more, ends it at once.

A handler runs in the middle of anything, so it only takes note: the loop asks `stop_requested` where all ranks meet. Work
whose outcome nobody needs any more is put under `Abandonable` and broken off. Python runs a handler only between its own
instructions, so a thread watches the clock: a rank that sits in a collective without its peers ends all the same.
"""

import logging
import os
import signal
import sys
import threading
import time
from types import FrameType, TracebackType

logger = logging.getLogger(__name__)

EXIT_STOPPED = 75
"""Exit code of a run that was asked to stop and has saved (EX_TEMPFAIL of sysexits.h): resume it to go on."""
REPEAT_S = 2.0
"""Copies of one signal, such as SLURM's and the launcher's, arrive within this; a later one is a second request."""
_UNWIND_S = 20.0
"""How long a process that is to end at once may take to close what it owns."""


class StopRequested(Exception):  # noqa: N818 - not an error
    """The run was asked to stop; raised on all ranks together."""


class Abandoned(KeyboardInterrupt):
    """Breaks off what is under Abandonable. A KeyboardInterrupt, because asyncio and others let those pass untouched."""


class _State:
    received: signal.Signals | None = None
    received_at = 0.0
    abandonable = False


def handle_stop_signals(grace_s: float) -> None:
    """Installs the handlers, in the main thread. `grace_s` after the first request the process ends, done or not."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)  # gets each signal's number as it arrives, whatever the main thread does
    threading.Thread(target=_watch, args=(reading, grace_s), name="signals", daemon=True).start()

    def ask(signum: int, frame: FrameType | None) -> None:
        if _State.received is None:
            _State.received, _State.received_at = signal.Signals(signum), time.monotonic()
        elif time.monotonic() - _State.received_at > REPEAT_S:
            _stop_now(signum, frame)
        if _State.abandonable:
            _State.abandonable = False
            raise Abandoned

    for signum in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(signum, ask)
    signal.signal(signal.SIGINT, _stop_now)


def stop_requested() -> signal.Signals | None:
    """The signal that asked this rank to stop."""
    return _State.received


class Abandonable:
    """A block that a request to stop breaks off with Abandoned; also when the request came before it."""

    def __enter__(self) -> None:
        _State.abandonable = True
        if _State.received is not None:
            _State.abandonable = False
            raise Abandoned

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        _State.abandonable = False


def _stop_now(signum: int, frame: FrameType | None) -> None:
    """Unwinds this process; servers are closed on the way, undisturbed by further signals (SIGKILL apart)."""
    for other in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(other, signal.SIG_IGN)
    sys.exit(128 + signum)


def _watch(reading: int, grace_s: float) -> None:
    """Ends the process `grace_s` after the first request to stop, and _UNWIND_S after the first to stop at once."""
    asked = False
    while arrived := os.read(reading, 1):
        if arrived[0] == signal.SIGINT:
            time.sleep(_UNWIND_S)
            os._exit(128 + signal.SIGINT)
        if arrived[0] in (signal.SIGTERM, signal.SIGUSR1) and not asked:
            asked = True
            timer = threading.Timer(grace_s, _out_of_time, [grace_s])
            timer.daemon = True
            timer.start()


def _out_of_time(grace_s: float) -> None:
    logger.error("not done within checkpoint.grace_s=%g s: stopped without saving; the last whole checkpoint holds", grace_s)
    os.kill(os.getpid(), signal.SIGINT)
