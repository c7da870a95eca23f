"""Commands one after the other, watched while they run, and stopped with this process: the first signal lets them save."""

import logging
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType, TracebackType

logger = logging.getLogger(__name__)

POLL_S = 0.5
REPEAT_S = 1.0
"""Copies of one signal arrive within this; a later one is a second request."""


class Stopped(Exception):  # noqa: N818 - not an error
    """A signal asked to stop; the command that ran has ended."""


class Commands:
    """Runs commands in sessions of their own, so that a terminal's Ctrl-C reaches this process alone. A context manager.

    SIGINT, SIGTERM and SIGHUP (but under nohup) are passed on to the command as SIGINT; a second one too, which ends a training
    run without saving. Commands inherit the open file `lock`: what it locks stays locked while one runs, also when this process is
    killed.
    """

    def __init__(self, lock: int | None = None) -> None:
        self._inherited = [] if lock is None else [lock]
        self._asked: list[float] = []
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "Commands":
        hang_up = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
        for signum in (signal.SIGINT, signal.SIGTERM, *hang_up):
            self._before[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]  # as signal.signal returned it

    def run(self, command: Sequence[str], printed: Path, tick: Callable[[], None]) -> int:
        """The command's exit code; what it prints is added to `printed`, and `tick` called while it runs.

        Raises Stopped, once it has ended, after a signal; also when that came before.
        """
        self._check()
        with printed.open("ab") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=self._inherited,
            )
            told = 0
            try:
                while process.poll() is None:
                    time.sleep(POLL_S)
                    tick()
                    if told < len(self._asked):
                        told += 1
                        process.send_signal(signal.SIGINT)
            finally:
                if process.poll() is None:  # an error in this process
                    process.send_signal(signal.SIGINT)
                    process.wait()
            tick()
        self._check()
        return process.returncode

    def _note(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self._asked or now - self._asked[-1] > REPEAT_S:
            self._asked.append(now)
            again = "once more ends it without saving" if len(self._asked) == 1 else "ending it"
            logger.info("%s: the run saves and stops; %s", signal.Signals(signum).name, again)

    def _check(self) -> None:
        if self._asked:
            raise Stopped("stopped; the same command resumes from here")
