"""Requests to a server that judges: OpenAI's or vLLM's HTTP, with retries, a time for all of them, and errors that name the server."""

import json
import logging
import os
import threading
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from megatron_entropic.tasks.verifiers.options import Options

OPTIONS = ("url", "model", "key_env", "timeout_s", "retries", "cache")
"""Options of every verifier that asks a server."""
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 10.0
_BUSY = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
"""Replies after which a server may do what it was asked."""
_LONGEST_REPLY = 2**22
_DOWN_S = 15.0
"""How long a server that did not answer is asked once only, so that a dead one does not hold up a whole step."""


class RemoteError(RuntimeError):
    """A server could not be asked, or replied with something else than a verdict; the message names it."""


class JudgingServer:
    """A server, asked by any number of threads at a time. Its key comes from the environment, and goes nowhere else.

    Raises ValueError naming the option that is wrong, or the variable that is missing.
    """

    def __init__(self, options: Options, path: str) -> None:
        self.url = options.text("url").rstrip("/")
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise options.wrong("url", "must be such as http://HOST:PORT/v1, without a key in it")
        self.address = f"{self.url}/{path}"
        self.timeout_s = options.number("timeout_s", 50.0, at_least=0.1, at_most=3600)
        self.retries = options.integer("retries", 4, at_most=100)
        self.key_env = options.text("key_env", "")
        if self.key_env and not os.environ.get(self.key_env):
            raise options.wrong("key_env", "there is no such environment variable, or it is empty")
        self._down_until = 0.0
        self._lock = threading.Lock()
        self._client: Any = None

    def ask(self, body: Mapping[str, Any]) -> Any:
        """The JSON that answers `body`. Raises RemoteError, within `timeout_s`."""
        deadline = time.monotonic() + self.timeout_s
        tries = 1 if time.monotonic() < self._down_until else 1 + self.retries
        why, wait = "", _FIRST_WAIT_S
        for number in range(tries):
            if number:
                pause = min(wait, _LONGEST_WAIT_S)
                if time.monotonic() + pause >= deadline:
                    break
                time.sleep(pause)
                wait *= 2
            reply, why = self._try(body, max(0.1, deadline - time.monotonic()))
            if reply is not None:
                self._down_until = 0.0
                return reply["json"]
        self._down_until = time.monotonic() + _DOWN_S
        raise RemoteError(f"{self.address} {why} (asked {number + 1} times)" if number else f"{self.address} {why}")

    def _try(self, body: Mapping[str, Any], timeout_s: float) -> tuple[dict[str, Any] | None, str]:
        """({"json": the reply}, "") or (None, what may pass). Raises RemoteError for what will not."""
        import httpx

        try:
            with self._opened().stream("POST", self.address, content=json.dumps(body).encode(), timeout=timeout_s) as response:
                content, ends = b"", time.monotonic() + timeout_s
                for chunk in response.iter_bytes():
                    content += chunk
                    if len(content) > _LONGEST_REPLY:
                        raise RemoteError(f"{self.address} replied with more than {_LONGEST_REPLY} bytes")
                    if time.monotonic() > ends:
                        return None, f"did not finish its reply in {timeout_s:.3g} s"
        except httpx.TimeoutException:
            return None, f"did not answer in {timeout_s:.3g} s"
        except httpx.HTTPError as error:
            return None, f"cannot be reached: {type(error).__name__}: {error}"
        if response.status_code != 200:
            why = f"replied {response.status_code}: {' '.join(content[:300].decode('utf-8', 'replace').split())}"
            if response.status_code in _BUSY:
                return None, why
            raise RemoteError(f"{self.address} {why}")
        try:
            return {"json": json.loads(content)}, ""
        except (ValueError, RecursionError):
            raise RemoteError(f"{self.address} replied with something else than JSON: {content[:80]!r}") from None

    def _opened(self) -> Any:
        import httpx

        with self._lock:
            if self._client is None:
                headers = {"Content-Type": "application/json"}
                if self.key_env:
                    headers["Authorization"] = f"Bearer {os.environ[self.key_env]}"
                logging.getLogger("httpx").setLevel(logging.WARNING)  # it says a line of every answer
                limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
                self._client = httpx.Client(headers=headers, limits=limits, follow_redirects=False)
            return self._client
