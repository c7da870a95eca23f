"""Answers judged by threads of this process: for verifiers that wait for a server, and compute next to nothing."""

import contextlib
import queue
import threading
from concurrent.futures import Future

from megatron_entropic.tasks.task import Problem, Verifier
from megatron_entropic.tasks.verification.judging import judge
from megatron_entropic.tasks.verification.records import Verdict


class WaitingPool:
    """At most `threads` answers under way. The verifier bounds the time of each itself; nothing else does.

    The threads do not keep the process from ending.
    """

    def __init__(self, verifier: Verifier, threads: int) -> None:
        self._verifier = verifier
        self._most = threads
        self._lock = threading.Lock()
        self._threads = 0
        self._idle = 0
        self._closed = False
        self._asked: queue.SimpleQueue[tuple[Problem, str, Future[Verdict]] | None] = queue.SimpleQueue()

    def submit(self, problem: Problem, response: str) -> Future[Verdict]:
        """Has an answer judged; does not wait. After `close` the future is cancelled."""
        future: Future[Verdict] = Future()
        with self._lock:
            if self._closed:
                future.cancel()
                return future
            self._asked.put((problem, response, future))
            if self._idle < self._asked.qsize() and self._threads < self._most:
                self._threads += 1
                threading.Thread(target=self._work, name="waiting", daemon=True).start()
        return future

    def close(self) -> None:
        """Answers that nobody has begun with get no verdict; does not wait for the others. Safe to call twice."""
        with self._lock:
            self._closed = True
            threads = self._threads
        with contextlib.suppress(queue.Empty):
            while True:
                if (left := self._asked.get_nowait()) is not None:
                    left[2].cancel()
        for _ in range(threads):
            self._asked.put(None)

    def _work(self) -> None:
        while True:
            with self._lock:
                self._idle += 1
            asked = self._asked.get()
            with self._lock:
                self._idle -= 1
            if asked is None:
                return
            problem, response, future = asked
            if future.set_running_or_notify_cancel():
                future.set_result(judge(self._verifier, problem, response, passing=()))
