"""One request for what several threads ask within a moment."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

_MOMENT_S = 0.01


class Batcher:
    """Hands texts to `ask`, at most `most` at a time. The first thread to come waits a moment, and asks for all."""

    def __init__(self, ask: Callable[[Sequence[str]], Sequence[float]], most: int) -> None:
        self._ask, self._most = ask, most
        self._lock = threading.Lock()
        self._waiting: list[tuple[str, Future[float]]] = []

    def __call__(self, text: str) -> float:
        """What `ask` returns for `text`. Raises what it raises."""
        own: Future[float] = Future()
        with self._lock:
            self._waiting.append((text, own))
            leads = len(self._waiting) == 1
        if leads and self._most > 1:
            time.sleep(_MOMENT_S)
        if leads:
            with self._lock:
                taken, self._waiting = self._waiting, []
            for start in range(self._most, len(taken), self._most):
                batch = taken[start : start + self._most]
                threading.Thread(target=self._settle, args=(batch,), daemon=True).start()
            self._settle(taken[: self._most])
        return own.result()

    def _settle(self, batch: Sequence[tuple[str, Future[float]]]) -> None:
        try:
            answers = self._ask([text for text, _ in batch])
            if len(answers) != len(batch):
                raise ValueError(f"{len(answers)} scores for {len(batch)} texts")
        except BaseException as error:  # noqa: BLE001 - it is raised in every thread that waits
            for _, future in batch:
                future.set_exception(error)
            return
        for (_, future), answer in zip(batch, answers, strict=True):
            future.set_result(answer)
