"""A vLLM server as those who use it see it: its address and key, how to speak to it, and what to say when it fails."""

import contextlib
import re
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from megatron_entropic.rollout.types import RolloutError, ServerLostError
from megatron_entropic.rollout.vllm.server_proof import CHALLENGE, PROOF, new_challenge, proves

POLL_S = 0.2
_TAIL_BYTES = 2**20
_NOISE = re.compile(r"Route: |nanobind|leaked|refleaks|DeprecationWarning|FutureWarning|warnings\.warn|^\s*$|\^{3,}")
_ERROR = re.compile(r"^(\w+\.)*\w*(Error|Exception)\b|\berror: ")
_PREFIX = re.compile(r"^(\(\S+ pid=\d+\) )?((ERROR|INFO|WARNING) [\d-]+ [\d:]+ \[\S+\] )?")


class ServerClient(ABC):
    """Server number `index` of a run at `url`, reached with `key`; it logs to `log_path`. Who owns its process: subclasses."""

    def __init__(self, index: int, url: str, key: str, log_path: Path) -> None:
        self.index = index
        self.url = url
        self.key = key
        self.log_path = log_path
        self._client: httpx.Client | None = None

    @property
    def name(self) -> str:
        return f"vllm_{self.index}"

    @property
    def host(self) -> str:
        """The address it listens on."""
        return urlsplit(self.url).hostname or ""

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    @property
    def client(self) -> httpx.Client:
        if self._client is None:
            self._client = httpx.Client(base_url=self.url, headers=self.headers, trust_env=False)
        return self._client

    @abstractmethod
    def exit_code(self) -> int | None:
        """The exit code (negative: a signal), or None while running as far as is known."""

    @abstractmethod
    def location(self) -> str:
        """Location of its process, for errors."""

    def terminate(self) -> None:  # noqa: B027 - nothing to do where it is another's
        """Asks the server to end, if it is this process's to end."""

    def close(self) -> None:
        """Lets go of the server. Safe to call twice."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def wait_ready(self, timeout_s: float, limit_s: float | None = None) -> None:
        """Returns once the server answers and has proved that it has the key, which nobody is sent before.

        Raises RolloutError when it dies first, when another program answers in its place, or after `timeout_s` seconds: what is
        left of `limit_s`, which the error names.
        """
        deadline = time.monotonic() + timeout_s
        with httpx.Client(base_url=self.url, trust_env=False) as without_key:
            while self.exit_code() is None:
                with contextlib.suppress(httpx.TransportError):
                    if self._is_ready(without_key):
                        return
                if time.monotonic() > deadline:
                    limit_s = timeout_s if limit_s is None else limit_s
                    raise RolloutError(f"{self} was not ready after {limit_s:g} s (rollout.startup_timeout_s){self.last_words()}")
                time.sleep(POLL_S)
        raise ServerLostError(f"{self} died while starting{self.last_words()}")

    def _is_ready(self, without_key: httpx.Client) -> bool:
        challenge = new_challenge()
        response = without_key.get("/health", headers={CHALLENGE: challenge}, timeout=2.0)
        if not proves(response.headers.get(PROOF, ""), self.key, challenge, urlsplit(self.url).port or 0):
            raise RolloutError(
                f"{self}: another program answers at {self.url} (status {response.status_code}) and cannot prove that it is this "
                "server; its key was not sent. Start the servers again, on other ports (rollout.base_port=0 picks free ones)"
            )
        return response.status_code == 200

    def call(self, method: str, path: str, *, timeout_s: float, json: Any = None) -> Any:
        """The JSON answer of one request. Raises RolloutError naming the server when there is none, or a status other than 200."""
        try:
            response = self.client.request(method, path, json=json, timeout=timeout_s)
        except httpx.HTTPError as error:
            raise self.failed(f"{method} {path}", error) from error
        if response.status_code != 200:
            raise RolloutError(f"{self} answered {method} {path} with {response.status_code}: {response.text[:500]}{self.last_words()}")
        return response.json() if response.content else None

    def failed(self, what: str, error: Exception) -> ServerLostError:
        """The error for a request that got no answer. May take a second: not to be called in an event loop."""
        if isinstance(error, httpx.TimeoutException):  # it is alive, and silent
            return ServerLostError(f"{self} did not answer {what} in time ({type(error).__name__}){self.last_words()}")
        self._allow_exit()
        return ServerLostError(f"{self} did not answer {what} ({type(error).__name__}: {error}){self.last_words()}")

    def too_slow(self, what: str, limit_s: float, setting: str) -> ServerLostError:
        """The error for a request that was not answered within `setting`."""
        return ServerLostError(f"{self} did not answer {what} within {limit_s:g} s ({setting}){self.last_words()}")

    def _allow_exit(self) -> None:
        """A dying server drops connections a moment before it can be seen to be dead: gives it that moment."""
        deadline = time.monotonic() + 1.0
        while self.exit_code() is None and time.monotonic() < deadline:
            time.sleep(0.05)

    def __str__(self) -> str:
        code = self.exit_code()
        state = "running" if code is None else f"exit code {code}"
        return f"rollout server {self.index} ({self.url}, {self.location()}, {state})"

    def last_words(self) -> str:
        """Suffix of an error: the path of the log, and its telling lines."""
        lines = "".join(f"\n    {line}" for line in log_tail(self.log_path))
        return f"; log {self.log_path}:{lines}"


def log_tail(path: Path, lines: int = 12) -> list[str]:
    """The lines of a vLLM log that tell what went wrong: the first and the last ones that name an error, else the last lines."""
    if not path.exists():
        return []
    with path.open("rb") as log:
        log.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        text = log.read().decode(errors="replace")
    meaningful = [_PREFIX.sub("", line).rstrip()[:400] for line in text.splitlines() if not _NOISE.search(line)]
    errors = list(dict.fromkeys(line for line in meaningful if _ERROR.search(line)))
    if not errors:
        return meaningful[-lines:]
    half = lines // 2
    return errors if len(errors) <= lines else [*errors[:half], *errors[-half:]]
