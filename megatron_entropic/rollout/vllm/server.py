"""One vLLM server, as its owner sees it: its port, its processes and its key. How to speak to it: client.py."""

import glob
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from megatron_entropic.config import RolloutConfig
from megatron_entropic.rollout.types import RolloutError
from megatron_entropic.rollout.vllm.client import ServerClient
from megatron_entropic.rollout.vllm.command_line import server_arguments, server_environment
from megatron_entropic.rollout.vllm.server_main import LISTENER_VARIABLE
from megatron_entropic.system.orphans import SCRATCH_VARIABLE
from megatron_entropic.system.rendezvous import listen
from megatron_entropic.system.scratch import scratch_folder

GRACE_S = 8.0
"""Time limit for servers that were told to end, all of them together."""


class VLLMServer(ServerClient):
    """Launches and owns server number `index` of a run. Nothing happens before `launch`.

    The server listens on `listener`, bound before it starts to an address of cfg.host, and nowhere else. Every path except /health
    needs its random key, which travels in the environment and never on a command line. It runs in a process group of its own and
    ends with this process, however that ends.
    """

    def __init__(
        self,
        cfg: RolloutConfig,
        index: int,
        *,
        listener: socket.socket,
        model_dir: Path,
        dtype: str,
        max_model_len: int,
        seed: int,
        log_dir: Path,
        slot: int | None = None,
        stats: bool = False,
    ) -> None:
        """`slot` is its number among the cfg.servers of this machine, which share its devices; `index` unless given."""
        port = listener.getsockname()[1]
        super().__init__(index, f"http://{cfg.host}:{port}", secrets.token_urlsafe(32), log_dir / f"vllm_{index}.log")
        self.arguments = server_arguments(
            cfg, port=port, model_dir=model_dir, dtype=dtype, max_model_len=max_model_len, seed=seed, stats=stats
        )
        self.environment = server_environment(cfg, index if slot is None else slot, self.key)
        self._listener = listener
        self._process: subprocess.Popen[bytes] | None = None
        self._told_at: float | None = None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def location(self) -> str:
        return f"pid {self.pid}"

    def launch(self) -> None:
        """Starts the process and returns at once. Raises RolloutError when the log cannot be written."""
        try:
            self.log_path.parent.mkdir(parents=True, exist_ok=True)
            self._scratch = scratch_folder(f"{self.name}_")  # vLLM leaves its sockets lying in TMPDIR
            folder, listener = self._scratch.name, self._listener.fileno()
            command = [
                sys.executable,
                "-m",
                "megatron_entropic.rollout.vllm.server_main",
                *without_patterns(self.arguments, Path(folder)),
            ]
            environ = {"TMPDIR": folder, SCRATCH_VARIABLE: folder, LISTENER_VARIABLE: str(listener)}
            with self.log_path.open("wb") as log, self._listener:
                self._process = subprocess.Popen(
                    command,
                    env=self.environment | environ,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    pass_fds=[listener],
                )
        except OSError as error:
            raise RolloutError(f"rollout server {self.index} cannot be started with its log in {self.log_path}: {error}") from error

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

    def terminate(self) -> None:
        """Asks the server to end, once; `close` makes sure of it, GRACE_S later."""
        if self._process is not None and self._told_at is None and self.exit_code() is None:
            self._told_at = time.monotonic()
            self._process.send_signal(signal.SIGTERM)

    def close(self) -> None:
        """Ends every process of the server: SIGTERM, then SIGKILL to its whole group. Safe to call twice.

        Whoever closes several tells all of them to `terminate` first: then they share the time that hung ones are waited for.
        """
        super().close()
        self._listener.close()
        process = self._process
        if process is None or process.returncode is not None:
            return
        self.terminate()
        deadline = (self._told_at or time.monotonic()) + GRACE_S
        while self.exit_code() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)  # the dead leader is not reaped yet, so the group number is still ours
        process.wait()
        if process.stdin is not None:
            process.stdin.close()
        if self._scratch is not None:
            self._scratch.cleanup()


def without_patterns(arguments: Sequence[str], folder: Path) -> list[str]:
    """The arguments, with the model reached by a link in `folder` where its path is a pattern: vLLM globs for its weights."""
    model = arguments[arguments.index("--model") + 1]
    if glob.escape(model) == model:
        return list(arguments)
    link = folder / "model"
    link.symlink_to(Path(model).resolve())
    return [str(link) if word == model else word for word in arguments]


def open_listeners(cfg: RolloutConfig) -> list[socket.socket]:
    """A listening socket per server: on base_port, base_port + 1, ... or on free ports, which are theirs from now on.

    Raises RolloutError naming a port that is in use.
    """
    listeners: list[socket.socket] = []
    for index in range(cfg.servers):
        port = cfg.base_port + index if cfg.base_port else 0
        try:
            listeners.append(listen(cfg.host, port))
        except OSError as error:
            for listener in listeners:
                listener.close()
            raise RolloutError(
                f"rollout server {index} cannot listen on {cfg.host} port {port}: {error.strerror}; "
                "set rollout.base_port to a range of free ports (0 picks them) and rollout.host to an address of this machine"
            ) from error
    return listeners
