"""Which processes of this machine are in a sandbox."""

import os
import time
from pathlib import Path

import psutil

from megatron_entropic.tasks.sandbox import Sandbox


def first_process(sandbox: Sandbox) -> psutil.Process:
    """The sandbox's first process, as this machine sees it."""
    assert sandbox._process is not None
    (first,) = psutil.Process(sandbox._process.pid).children()
    return first


def namespace(pid: int, kind: str = "pid") -> str:
    return os.readlink(f"/proc/{pid}/ns/{kind}")


def members(name: str) -> list[int]:
    """The processes of this machine in that process namespace. One that has ended, and waits to be collected, is none."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if namespace(int(path.name)) == name and ") Z " not in (path / "stat").read_text():
                found.append(int(path.name))
        except OSError:
            continue
    return found


def empty_soon(name: str) -> bool:
    """Waits up to ten seconds for a namespace to lose its last process."""
    deadline = time.monotonic() + 10
    while members(name) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not members(name)
