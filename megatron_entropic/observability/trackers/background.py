"""A tracker driven in a thread of its own, so that it can fail, or hang, and training does not notice.

What it is to take waits in a bounded queue. A call that raises is made again after a while, RETRY_S. When that does not help, metrics
are given up for the rest of this start of the run; of anything else (a table, an alert) that kind is. metrics.jsonl has it all: a
tracker of the package gets what it missed when the run is resumed (delivered.py).
"""

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from megatron_entropic.config.secrets import without_passwords
from megatron_entropic.errors import ReportedError
from megatron_entropic.observability.metrics import MetricValue
from megatron_entropic.observability.trackers.tracker import RemoteTracker
from megatron_entropic.system.named_functions import raised

logger = logging.getLogger(__name__)

RETRY_S = (1.0, 5.0, 30.0)
"""Waits before a failed call is made again."""
LAST_RETRY_S = 2.0
"""The longest of these waits at the end of the run."""
SLOW_S = 60.0
"""A call that takes longer is remarked on."""
_FAILURES = (Exception, SystemExit)
"""Whatever somebody else's code raises."""
_Handover = tuple[str, tuple[Any, ...]]


class BackgroundTracker:
    """Drives the tracker that `make` makes, once `start` is called. Every method returns at once, but for those that say so.

    Args:
        name: as in trainer.trackers, for messages.
        delivered: called in the thread after each step that the tracker has taken.
        known: called in the thread with the tracker's run_id.
        abandon: what lets go of a tracker that is not made yet, as its own `abandon` does later.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[], RemoteTracker],
        *,
        room: int,
        known: Callable[[str], None] = lambda run_id: None,
        delivered: Callable[[int], None] = lambda step: None,
        abandon: Callable[[], None] | None = None,
    ) -> None:
        self.name = name
        self._make, self._known, self._delivered, self._abandon_making = make, known, delivered, abandon
        self._queue: queue.Queue[_Handover | None] = queue.Queue(room)
        self._tracker: RemoteTracker | None = None
        self._refused: Exception | None = None
        self._made, self._ending, self._let_go = threading.Event(), threading.Event(), threading.Event()
        self._given_up = self._dropped = False
        self._unwanted: set[str] = set()
        self._said: set[str] = set()
        self._missed = 0
        self._busy_since: float | None = None
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)

    def start(self) -> None:
        """Has the tracker made; `wait_made` waits for it."""
        self._thread.start()

    def wait_made(self, until: float) -> None:
        """Waits, until that time.monotonic() at most, for the tracker to be made. Raises ReportedError for what the user must mend."""
        made = self._made.wait(max(0.0, until - time.monotonic()))
        if self._refused is not None:
            raise self._refused
        if not made and not self._given_up:
            self._say("slow start", "is not ready yet; training goes on meanwhile")

    def log(self, step: int, metrics: Mapping[str, MetricValue]) -> None:
        """Has the tracker take the metrics of `step`."""
        self.submit("log", step, metrics)

    def submit(self, method: str, *arguments: Any) -> None:
        """Has the tracker's method called, if it has it."""
        if self._given_up or self._ending.is_set():
            return
        since = self._busy_since
        if since is not None and time.monotonic() - since > SLOW_S:
            self._say("slow", f"has been busy with one call for more than {SLOW_S:g} s; training goes on meanwhile")
        try:
            self._queue.put_nowait((method, arguments))
        except queue.Full:
            self._missed += 1
            self._say("full", "is too slow: it misses what comes while tracking.queue is full; metrics.jsonl has it all")

    def finish(self) -> None:
        """Says that nothing more comes."""
        self._ending.set()
        with contextlib.suppress(queue.Full):  # the thread looks at _ending, too
            self._queue.put_nowait(None)

    def join(self, until: float) -> None:
        """Waits, until that time.monotonic() at most, for what the tracker has not taken yet; then lets go of it."""
        self.finish()
        if self._thread.ident is None:
            return
        self._thread.join(max(0.0, until - time.monotonic()))
        if self._thread.is_alive():
            waiting = sum(call is not None for call in tuple(self._queue.queue))
            self._say("left", f"was not done within tracking.flush_s: {waiting} steps, tables and alerts were not handed over")
            self._abandon()
        elif self._missed:
            logger.warning("tracker %s missed %d steps, tables and alerts", self.name, self._missed)

    def drop(self) -> None:
        """Lets go of the tracker at once, and does not close it: the run is another process's now."""
        self._dropped = True
        self._abandon()
        self.finish()

    def close(self) -> None:
        """As `join` without patience; safe to call twice."""
        self.join(time.monotonic())

    def _work(self) -> None:
        self._open()
        while self._tracker is not None and not self._given_up:
            try:
                call = self._queue.get(timeout=None if not self._ending.is_set() else 0)
            except queue.Empty:
                break
            if call is None:
                break
            self._hand_over(self._tracker, *call)
        if self._tracker is not None and not self._dropped:
            self._attempt("close", self._tracker.close)

    def _abandon(self) -> None:
        self._given_up = True
        self._let_go.set()
        abandon = getattr(self._tracker, "abandon", None) if self._tracker is not None else self._abandon_making
        if abandon is not None:
            self._attempt("abandon", abandon)

    def _open(self) -> None:
        for wait in (*RETRY_S, None):
            try:
                self._tracker = self._make()
                break
            except ReportedError as error:  # what the user must mend: in the settings, or in code of theirs
                self._refused = error
                if self._made.is_set() or self._said:
                    self._fail("cannot be opened", error)
                break
            except _FAILURES as error:
                self._say("open", f"cannot be opened yet, training goes on meanwhile: {_text(error)}")
                self._made.set()
                if wait is None or self._let_go_after(wait):
                    self._fail("cannot be opened", error)
                    break
        if self._tracker is not None and not self._dropped:
            self._known(self._tracker.run_id)
        self._made.set()

    def _hand_over(self, tracker: RemoteTracker, method: str, arguments: tuple[Any, ...]) -> None:
        call = getattr(tracker, method, None)
        if call is None or method in self._unwanted:
            return
        for wait in (*RETRY_S, None):
            self._busy_since = time.monotonic()
            try:
                call(*arguments)
                break
            except _FAILURES as error:
                self._say(method, f"failed at {method}: {_text(error)}")
                if wait is None or self._let_go_after(wait):
                    if method == "log":
                        self._fail(f"did not take step {arguments[0] + 1}", error)
                    self._unwanted.add(method)
                    return
            finally:
                self._busy_since = None
        if method == "log" and not self._dropped:
            self._delivered(arguments[0])

    def _let_go_after(self, seconds: float) -> bool:
        """Waits, at the end of the run for a short while only; says whether the end of the run waits no longer."""
        if self._ending.wait(seconds):
            self._let_go.wait(min(seconds, LAST_RETRY_S))
        return self._let_go.is_set()

    def _attempt(self, what: str, call: Callable[[], None]) -> None:
        try:
            call()
        except _FAILURES as error:
            self._say(what, f"failed at {what}: {_text(error)}")

    def _fail(self, what: str, error: BaseException) -> None:
        self._given_up = True
        logger.warning(
            "tracker %s %s and is left out from here on; training goes on, metrics.jsonl has it all: %s", self.name, what, _text(error)
        )

    def _say(self, what: str, message: str) -> None:
        """A warning, each kind once."""
        if what not in self._said:
            self._said.add(what)
            logger.warning("tracker %s %s", self.name, message)


def _text(error: BaseException) -> str:
    return without_passwords(raised(error))
