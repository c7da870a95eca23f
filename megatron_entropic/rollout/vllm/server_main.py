"""Entry point of one vLLM server of a run: vLLM's own API server, tied to the life of the process that started it.

`python -m megatron_entropic.rollout.vllm.server_main ARGS...` takes vLLM's command line. Five things are added:

* The server ends with its owner, also when the owner is SIGKILLed: standard input is a pipe whose other end only the owner
  holds, so its end of file, or another parent process, means that the owner is gone.
* The server listens on a socket that its owner opened, so that no other program can have its port.
* SIGUSR1, which asks a run to save and stop and which SLURM may send to all of its processes, does not end the server.
* Processes that the server forks (the engine core) are killed by the kernel when the server's process disappears.
* With `FORK_ENGINE=1` in the environment the engine core is forked after vLLM was imported, not spawned: importing vLLM takes
  about 10 s of one core, and a spawned engine core would pay that a second time.
"""

import ctypes
import gc
import importlib
import multiprocessing
import os
import runpy
import select
import shutil
import signal
import socket
import threading
import time
import warnings

from megatron_entropic.system.many_imports import many_imports
from megatron_entropic.system.orphans import SCRATCH_VARIABLE

FORK_ENGINE = "MEGATRON_ENTROPIC_FORK_ENGINE"
"""Environment variable: "1" forks the engine core. Only for devices that survive a fork and executors inside the engine core."""

LISTENER_VARIABLE = "MEGATRON_ENTROPIC_LISTENER"
"""Environment variable: number of the open socket on which the server is to listen."""

SERVER_MODULE = "vllm.entrypoints.openai.api_server"
OWNER_POLL_S = 1.0
GRACE_S = 5.0
_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Asks the kernel to SIGKILL the calling process when the thread that forked it ends (Linux)."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _wait_for_end_of_owner(owner_pid: int, stdin_fd: int) -> None:
    """Returns once the pipe on `stdin_fd` is at its end or the parent process is no longer `owner_pid`."""
    while os.getppid() == owner_pid:
        readable, _, _ = select.select([stdin_fd], [], [], OWNER_POLL_S)
        if readable and not os.read(stdin_fd, 1):
            return


def end_group_with_owner(stdin_fd: int = 0) -> None:
    """Starts a thread that ends this process group (SIGTERM, then SIGKILL) when the owner is gone."""
    owner_pid = os.getppid()

    def watch() -> None:
        _wait_for_end_of_owner(owner_pid, stdin_fd)
        os.killpg(0, signal.SIGTERM)
        time.sleep(GRACE_S)
        remove_scratch()
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, name="owner-watch", daemon=True).start()


def remove_scratch() -> None:
    """Removes this server's temporary folder: its owner may be gone."""
    if folder := os.environ.get(SCRATCH_VARIABLE):
        shutil.rmtree(folder, ignore_errors=True)


def fork_engine_core() -> None:
    """Makes vLLM fork its engine core. vLLM's CPU platform asks for spawn for the sake of OpenMP binding, which is not used here."""
    from vllm.v1.engine import utils

    utils.get_mp_context = lambda: multiprocessing.get_context("fork")


def listen_on(descriptor: int) -> None:
    """Has vLLM's front end listen on an open socket instead of one that it binds itself."""
    from vllm.entrypoints.launchers import launcher

    listener = socket.socket(fileno=descriptor)
    listener.set_inheritable(False)  # not for the workers that vLLM spawns
    launcher.create_server_socket = lambda address, *, reuse_port: listener


def main() -> None:
    end_group_with_owner()
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    warnings.filterwarnings("ignore", message=".*found in sys.modules", category=RuntimeWarning, module="runpy")
    with many_imports():
        importlib.import_module(SERVER_MODULE)
    gc.freeze()
    os.register_at_fork(after_in_child=die_with_parent)
    if os.environ.get(FORK_ENGINE) == "1":
        fork_engine_core()
    listen_on(int(os.environ.pop(LISTENER_VARIABLE)))
    try:
        runpy.run_module(SERVER_MODULE, run_name="__main__", alter_sys=True)
    finally:
        remove_scratch()


if __name__ == "__main__":
    main()
