"""SIGTERM, SIGUSR1 and SIGHUP ask a rank to save and end; SIGINT, or asking once more, ends it at once.

A handler runs in the middle of anything, so it only takes note: the loop asks `stop_requested` where all ranks meet. Work
whose outcome nobody needs any more is put under `Abandonable` and broken off. Python runs a handler only between its own
instructions, so a thread watches the clock: a rank that sits in a collective without its peers ends all the same.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType, TracebackType

logger = logging.getLogger(__name__)

EXIT_STOPPED = 75
"""Exit code of a run that was asked to stop and has saved (EX_TEMPFAIL of sysexits.h): resume it to continue."""
REPEAT_S = 2.0
"""Copies of one signal, such as SLURM's and the launcher's, arrive within this; a later one is a second request."""
_UNWIND_S = 20.0
"""Time that a process that is to end at once may take to close what it owns."""


class StopRequested(Exception):  # noqa: N818 - not an error
    """The run was asked to stop; raised on all ranks together."""


class Abandoned(KeyboardInterrupt):
    """Breaks off what is under Abandonable. A KeyboardInterrupt, because asyncio and others let those pass untouched."""


class StoppedAtOnce(SystemExit):
    """Unwinds the process, whatever it does."""


def raised_by_signals() -> tuple[type[BaseException], ...]:
    """Exceptions that this process's signal handlers raise anywhere. Code that catches every exception must let these pass."""
    ctrl_c = (KeyboardInterrupt,) if signal.getsignal(signal.SIGINT) is signal.default_int_handler else ()
    return (Abandoned, StoppedAtOnce, *ctrl_c)


class _State:
    received: signal.Signals | None = None
    received_at = 0.0
    abandonable = False
    out_of_time = False


def asking_signals() -> list[signal.Signals]:
    """The signals that ask a run to save and stop. SIGHUP is none under nohup, which ignores it."""
    hang_up = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGTERM, signal.SIGUSR1, *hang_up]


@contextmanager
def held_back_signals() -> Iterator[None]:
    """Signals that come within the block are delivered after it; processes started in it hold theirs until they handle them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [*asking_signals(), signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def handle_stop_signals(grace_s: float, *, interrupt_saves: bool = False) -> None:
    """Installs the handlers, in the main thread. `grace_s` after the first request the process ends, done or not.

    With `interrupt_saves` SIGINT is a request too. Signals that came while they were held back are delivered now.
    """
    asking = asking_signals() + [signal.SIGINT] * interrupt_saves
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)  # gets each signal's number as it arrives, whatever the main thread does
    threading.Thread(target=_watch, args=(reading, grace_s, asking), name="signals", daemon=True).start()

    def ask(signum: int, frame: FrameType | None) -> None:
        if _State.received is None:
            _State.received, _State.received_at = signal.Signals(signum), time.monotonic()
        elif _State.out_of_time or time.monotonic() - _State.received_at > REPEAT_S:
            _stop_now(signum, frame)
        if _State.abandonable:
            _State.abandonable = False
            raise Abandoned

    signal.signal(signal.SIGINT, _stop_now)
    for signum in asking:
        signal.signal(signum, ask)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [*asking, signal.SIGINT])


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
    for other in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT):
        signal.signal(other, signal.SIG_IGN)
    raise StoppedAtOnce(128 + signum)


def _watch(reading: int, grace_s: float, asking: Sequence[int]) -> None:
    """Ends the process `grace_s` after the first request to stop, and _UNWIND_S after the first to stop at once."""
    asked_at: float | None = None
    while arrived := os.read(reading, 1):
        if arrived[0] in asking and asked_at is None:
            asked_at = time.monotonic()
            timer = threading.Timer(grace_s, _out_of_time, [grace_s])
            timer.daemon = True
            timer.start()
        elif arrived[0] == signal.SIGINT and (signal.SIGINT not in asking or _State.out_of_time):
            time.sleep(_UNWIND_S)
            os._exit(128 + signal.SIGINT)


def _out_of_time(grace_s: float) -> None:
    logger.error("not done within checkpoint.grace_s=%g s: stopped without saving; the last complete checkpoint holds", grace_s)
    _State.out_of_time = True
    os.kill(os.getpid(), signal.SIGINT)
