"""One vLLM server of a run, as its owner sees it: its ports and processes, its key, its log, and how to speak to it."""

import contextlib
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from megatron_entropic.config import RolloutConfig
from megatron_entropic.rollout.server_command import server_arguments, server_environment
from megatron_entropic.rollout.types import RolloutError

POLL_S = 0.2
GRACE_S = 8.0
_TAIL_BYTES = 2**20
_NOISE = re.compile(r"Route: |nanobind|leaked|refleaks|DeprecationWarning|FutureWarning|warnings\.warn|^\s*$|\^{3,}")
_ERROR = re.compile(r"^(\w+\.)*\w*(Error|Exception)\b|\berror: ")
_PREFIX = re.compile(r"^(\(\S+ pid=\d+\) )?((ERROR|INFO|WARNING) [\d-]+ [\d:]+ \[\S+\] )?")


class VLLMServer:
    """Launches and owns server number `index` of a run. Nothing happens before `launch`.

    The server listens on cfg.host only, and every path except /health needs its random key, which travels in the environment
    and never on a command line. It runs in a process group of its own and ends with this process, however that ends.
    """

    def __init__(
        self, cfg: RolloutConfig, index: int, *, port: int, model_dir: Path, dtype: str, max_model_len: int, seed: int, log_dir: Path
    ) -> None:
        self.index = index
        self.url = f"http://{cfg.host}:{port}"
        self.log_path = log_dir / f"vllm_{index}.log"
        self.key = secrets.token_urlsafe(32)
        self.arguments = server_arguments(cfg, port=port, model_dir=model_dir, dtype=dtype, max_model_len=max_model_len, seed=seed)
        self.environment = server_environment(cfg, index, self.key)
        self._process: subprocess.Popen[bytes] | None = None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._client: httpx.Client | None = None

    @property
    def name(self) -> str:
        return f"vllm_{self.index}"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    def launch(self) -> None:
        """Starts the process and returns at once. Raises RolloutError when the log cannot be written."""
        command = [sys.executable, "-m", "megatron_entropic.rollout.vllm_main", *self.arguments]
        try:
            self.log_path.parent.mkdir(parents=True, exist_ok=True)
            self._scratch = tempfile.TemporaryDirectory(prefix=f"{self.name}_")  # vLLM leaves its sockets lying in TMPDIR
            with self.log_path.open("wb") as log:
                self._process = subprocess.Popen(
                    command,
                    env=self.environment | {"TMPDIR": self._scratch.name},
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        except OSError as error:
            raise RolloutError(f"rollout server {self.index} cannot be started with its log in {self.log_path}: {error}") from error
        self._client = httpx.Client(base_url=self.url, headers=self.headers, trust_env=False)

    def wait_ready(self, timeout_s: float) -> None:
        """Returns once the server answers. Raises RolloutError when it dies first, or is not ready after `timeout_s` seconds."""
        deadline = time.monotonic() + timeout_s
        while self.exit_code() is None:
            with contextlib.suppress(httpx.TransportError):
                if self.client.get("/health", timeout=2.0).status_code == 200:
                    return
            if time.monotonic() > deadline:
                raise RolloutError(f"{self} was not ready after {timeout_s:g} s (rollout.startup_timeout_s){self.last_words()}")
            time.sleep(POLL_S)
        raise RolloutError(f"{self} died while starting{self.last_words()}")

    @property
    def client(self) -> httpx.Client:
        assert self._client is not None, "launch() comes first"
        return self._client

    def call(self, method: str, path: str, *, timeout_s: float, json: Any = None) -> Any:
        """The JSON answer of one request. Raises RolloutError naming the server when there is none, or a status other than 200."""
        try:
            response = self.client.request(method, path, json=json, timeout=timeout_s)
        except httpx.HTTPError as error:
            raise self.failed(f"{method} {path}", error) from error
        if response.status_code != 200:
            raise RolloutError(f"{self} answered {method} {path} with {response.status_code}: {response.text[:500]}{self.last_words()}")
        return response.json() if response.content else None

    def failed(self, what: str, error: Exception) -> RolloutError:
        """The RolloutError for a request that got no answer."""
        self._allow_exit()
        return RolloutError(f"{self} did not answer {what} ({type(error).__name__}: {error}){self.last_words()}")

    def _allow_exit(self) -> None:
        """A dying server drops connections a moment before it can be seen to be dead: gives it that moment."""
        deadline = time.monotonic() + 1.0
        while self.exit_code() is None and time.monotonic() < deadline:
            time.sleep(0.05)

    def exit_code(self) -> int | None:
        """The exit code (negative: a signal), or None while running. Leaves the dead process in place, so its group stays ours."""
        if self._process is None:
            return None
        if self._process.returncode is not None:
            return self._process.returncode
        state = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if state is None:
            return None
        return state.si_status if state.si_code == os.CLD_EXITED else -state.si_status

    def __str__(self) -> str:
        code = self.exit_code()
        state = "running" if code is None else f"exit code {code}"
        return f"rollout server {self.index} ({self.url}, pid {self.pid}, {state})"

    def last_words(self) -> str:
        """What to add to an error: where the log is, and its telling lines."""
        lines = "".join(f"\n    {line}" for line in log_tail(self.log_path))
        return f"; log {self.log_path}:{lines}"

    def terminate(self) -> None:
        """Asks the server to end; `close` makes sure of it."""
        if self._process is not None and self.exit_code() is None:
            self._process.send_signal(signal.SIGTERM)

    def close(self) -> None:
        """Ends every process of the server: SIGTERM, then SIGKILL to its whole group. Safe to call twice."""
        if self._client is not None:
            self._client.close()
        process = self._process
        if process is None or process.returncode is not None:
            return
        self.terminate()
        deadline = time.monotonic() + GRACE_S
        while self.exit_code() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)  # the dead leader is not reaped yet, so the group number is still ours
        process.wait()
        if process.stdin is not None:
            process.stdin.close()
        if self._scratch is not None:
            self._scratch.cleanup()


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


def find_ports(cfg: RolloutConfig) -> list[int]:
    """One port per server: base_port, base_port + 1, ... or free ones. Raises RolloutError naming a port that is in use."""
    wanted: Sequence[int] = [0] * cfg.servers if cfg.base_port == 0 else range(cfg.base_port, cfg.base_port + cfg.servers)
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in wanted]
        for index, (listener, port) in enumerate(zip(sockets, wanted, strict=True)):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((cfg.host, port))
                listener.listen(1)
            except OSError as error:
                raise RolloutError(
                    f"rollout server {index} cannot listen on {cfg.host} port {port}: {error.strerror}; "
                    "set rollout.base_port to a range of free ports (0 picks them) and rollout.host to an address of this machine"
                ) from error
        return [listener.getsockname()[1] for listener in sockets]
