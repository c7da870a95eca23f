"""Several verifier processes that answers wait for: started as they are needed, each answer judged by the first that is free."""

import queue
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock

from megatron_entropic.tasks.task import Problem
from megatron_entropic.tasks.verification.records import Limits, Verdict, VerifierSpec
from megatron_entropic.tasks.verification.worker import VerifierWorker


class VerifierPool:
    """At most `workers` processes. An answer that hangs costs one of them until its limit, and nobody else anything.

    A verdict depends on the answer alone, not on which process gives it or when; only the limits look at clocks.
    """

    def __init__(self, spec: VerifierSpec, limits: Limits, workers: int) -> None:
        self.spec = spec
        self.limits = limits
        # A process dies with the thread that started it: these threads last as long as the pool.
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="verifier")
        self._lock = Lock()
        self._workers: list[VerifierWorker] = []
        self._idle: queue.LifoQueue[VerifierWorker] = queue.LifoQueue()

    def start(self) -> None:
        """Starts the first process and waits for it. Raises VerifierError when the verifier cannot be made."""
        self._threads.submit(self._start_one).result()

    def submit(self, problem: Problem, response: str) -> Future[Verdict]:
        """Has an answer judged; does not wait. The future raises VerifierError when no process can be started any more."""
        return self._threads.submit(self._judge, problem, response)

    def close(self) -> None:
        """Ends every process; answers under way get no verdict. Safe to call twice."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            workers = list(self._workers)
        for worker in workers:
            worker.kill()
        self._threads.shutdown(wait=True)
        for worker in workers:
            worker.close()

    def _start_one(self) -> None:
        worker = self._take()
        try:
            worker.start()
        finally:
            self._idle.put(worker)

    def _judge(self, problem: Problem, response: str) -> Verdict:
        worker = self._take()
        try:
            return worker.judge(problem, response)
        finally:
            self._idle.put(worker)

    def _take(self) -> VerifierWorker:
        """A process that nobody uses; a new one when all are in use, of which there are never more than threads."""
        try:
            return self._idle.get_nowait()
        except queue.Empty:
            worker = VerifierWorker(self.spec, self.limits)
            with self._lock:
                self._workers.append(worker)
            return worker
