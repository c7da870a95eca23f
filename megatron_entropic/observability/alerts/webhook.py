"""Alerts posted to a URL as JSON, in a thread of their own. The URL is a secret: only its host is ever named.

    {"text": "my run: no signal (step 12): ...", "run": "my run", "kind": "no_signal", "state": "begins", "step": 11, "steps": 5, ...}

`text` is what Slack, and what understands its messages, shows. `step` counts from 0, as in metrics.jsonl.
"""

import contextlib
import http.client
import json
import logging
import queue
import socket
import threading
import time
import urllib.error
import urllib.request
from dataclasses import asdict
from urllib.parse import urlsplit

from megatron_entropic.observability.trackers.tracker import Alert

logger = logging.getLogger(__name__)

RETRY_S = (1.0, 5.0, 25.0)
"""Waits before an alert is posted again."""
LAST_RETRY_S = 2.0
"""The longest of these waits at the end of the run."""
_ROOM = 100
_PASSING = (408, 425, 429)
"""Answers below 500 that say: later."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The receiver was named by the user, and sends alerts nowhere else."""

    def redirect_request(self, *arguments: object, **named: object) -> None:
        return None


class Webhook:
    """Posts alerts to `url` as those of the run `name`. Nothing waits for it, but `close`, as long as it is told to."""

    def __init__(self, url: str, name: str, timeout_s: float) -> None:
        self._url, self._name, self._timeout_s = url, name, timeout_s
        self._host = urlsplit(url).hostname or ""
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._queue: queue.Queue[Alert | None] = queue.Queue(_ROOM)
        self._ending, self._let_go = threading.Event(), threading.Event()
        self._said_full = False
        self._thread = threading.Thread(target=self._work, name="webhook", daemon=True)
        self._thread.start()

    def post(self, alert: Alert) -> None:
        """Has the alert posted, and posted again when that fails."""
        try:
            self._queue.put_nowait(alert)
        except queue.Full:
            if not self._said_full:
                self._said_full = True
                logger.warning("alerts.webhook (%s) is too slow: alerts are left out", self._host)

    def finish(self) -> None:
        """Says that nothing more comes."""
        self._ending.set()
        with contextlib.suppress(queue.Full):  # the thread looks at _ending, too
            self._queue.put_nowait(None)

    def close(self, until: float) -> None:
        """Waits for alerts under way, until that time.monotonic() at most; safe to call twice."""
        self.finish()
        self._thread.join(max(0.0, until - time.monotonic()))
        if self._thread.is_alive() and not self._let_go.is_set():
            self._let_go.set()
            logger.warning("alerts.webhook (%s) was not done at the end of the run: alerts may be missing there", self._host)

    def _work(self) -> None:
        while True:
            try:
                alert = self._queue.get(timeout=0 if self._ending.is_set() else None)
            except queue.Empty:
                return
            if alert is None:
                return
            self._deliver(alert)

    def _deliver(self, alert: Alert) -> None:
        for wait in (*RETRY_S, None):
            problem, passing = self._try(alert)
            if not problem:
                return
            if wait is None or not passing or self._let_go_after(wait):
                logger.warning("alert %s could not be posted to alerts.webhook (%s): %s", alert.title, self._host, problem)
                return

    def _let_go_after(self, seconds: float) -> bool:
        """Waits, at the end of the run for a short while only; says whether the end of the run waits no longer."""
        if self._ending.wait(seconds):
            self._let_go.wait(min(seconds, LAST_RETRY_S))
        return self._let_go.is_set()

    def _try(self, alert: Alert) -> tuple[str, bool]:
        """What is wrong, empty when nothing is, and whether it may pass. No message of it holds the URL."""
        request = urllib.request.Request(
            self._url, self._content(alert), {"Content-Type": "application/json", "User-Agent": "megatron-entropic"}, method="POST"
        )
        try:
            with self._opener.open(request, timeout=self._timeout_s) as answer:
                return ("", False) if 200 <= answer.status < 300 else (f"it answered {answer.status}", False)
        except urllib.error.HTTPError as error:
            error.close()
            meaning = http.client.responses.get(error.code, "")
            return f"it answered {error.code} {meaning}".rstrip(), error.code >= 500 or error.code in _PASSING
        except (OSError, http.client.HTTPException, ValueError) as error:
            cause = error.reason if isinstance(error, urllib.error.URLError) else error
            if isinstance(cause, TimeoutError | socket.timeout):
                return f"no answer within alerts.webhook_timeout_s={self._timeout_s:g} s", True
            return f"{type(cause).__name__}{f': {cause.strerror}' if isinstance(cause, OSError) and cause.strerror else ''}", True

    def _content(self, alert: Alert) -> bytes:
        fields = {"text": f"{self._name}: {alert.title}: {alert.message}", "run": self._name, **asdict(alert), "time": time.time()}
        return json.dumps(fields).encode()
