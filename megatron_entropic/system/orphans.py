"""Processes that outlive whoever started them: this process inherits them, and ends the rollout servers among them."""

import contextlib
import ctypes
import os
import shutil
import signal
import sys
import time

import psutil

SCRATCH_VARIABLE = "MEGATRON_ENTROPIC_SCRATCH"
"""Environment variable of a rollout server: the temporary folder that is its own."""
_PR_SET_CHILD_SUBREAPER = 36


def inherit_orphans() -> None:
    """Makes this process the parent of those descendants whose parent ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_orphaned_servers(grace_s: float) -> list[int]:
    """Ends rollout servers whose rank was killed before it could, and removes their folders; returns their process ids.

    Each ends by itself within `grace_s` when it is well; then SIGKILL goes to the group of a hung one.
    """
    servers = {child.pid: folder for child in psutil.Process().children() if (folder := _scratch(child))}
    deadline = time.monotonic() + grace_s
    while _living(servers) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in servers:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getpgid(pid) == pid:  # not reaped yet, so its number and its group are still its own
                os.killpg(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
        shutil.rmtree(servers[pid], ignore_errors=True)
    return list(servers)


def _living(pids: dict[int, str]) -> bool:
    return any(os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None for pid in pids)


def _scratch(process: psutil.Process) -> str | None:
    try:
        folder: str | None = process.environ().get(SCRATCH_VARIABLE)
    except psutil.Error:
        return None
    return folder
