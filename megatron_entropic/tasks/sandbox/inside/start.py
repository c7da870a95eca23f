"""The sandbox's process: takes its settings, leaves the machine behind, and serves cases (cases.py).

First line in: the settings, with `alone` where no namespaces are wanted. First line out: {"ready": true}, or {"failed": why}.
"""

import errno
import json
import os
import signal
from collections.abc import Mapping
from typing import Any, NoReturn

from . import cases, view
from .lines import Lines
from .system_calls import ALL_NAMESPACES, PR_SET_DUMPABLE, PR_SET_PDEATHSIG, control_process, unshare

NOBODY = 65534
"""Whom the answer's process is, outside, where this one may choose."""


def main() -> NoReturn:
    """Serves descriptors 0 and 1 until 0 ends."""
    control_process(PR_SET_PDEATHSIG, signal.SIGKILL)
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(signum, signal.SIG_IGN)  # a scheduler sends them to all of a job; it ends with whoever started it
    requests = Lines(os.dup(0))
    replies = os.dup(1)
    line = requests.next()
    if line is None:
        os._exit(0)
    settings = json.loads(line)
    alone = bool(settings["alone"])
    try:
        owner = 0 if alone else _leave(settings["shown"])
    except OSError as error:
        bound = "; user.max_user_namespaces or another bound on namespaces is reached" if error.errno == errno.ENOSPC else ""
        cases.send(replies, {"failed": f"{error}{bound}"})
        os._exit(1)
    if alone:
        _serve(requests, replies, settings, owner, alone=True)
    first = os.fork()
    if first == 0:
        control_process(PR_SET_PDEATHSIG, signal.SIGKILL)
        _serve(requests, replies, settings, owner, alone=False)
    for descriptor in (0, 1, requests.descriptor, replies):
        os.close(descriptor)
    os.waitpid(first, 0)  # returns once nothing is left in its namespace
    os._exit(0)


def _serve(requests: Lines, replies: int, settings: Mapping[str, Any], owner: int, *, alone: bool) -> NoReturn:
    control_process(PR_SET_DUMPABLE, 0)  # an answer of the same user may not look into this process
    cases.send(replies, {"ready": True})
    cases.serve(requests, replies, settings, owner, alone=alone)


def _leave(shown: list[str]) -> int:
    """New namespaces, and the view of `shown`. Returns the user, inside, that the answer's process is to be."""
    mapped = _maps()
    if os.geteuid() == 0 and mapped is not None:
        _unshare_mapped_from_outside(mapped)
        owner = 1
    else:
        uid, gid = os.geteuid(), os.getegid()
        unshare(ALL_NAMESPACES)
        owner = NOBODY
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{owner} {uid} 1")
        _write("/proc/self/gid_map", f"{owner} {gid} 1")
    view.enter(shown)
    return owner


def _maps() -> int | None:
    """A user other than root that this process may become: NOBODY or the last that there is; None when there is none but itself."""
    last = 0
    with open("/proc/self/uid_map") as file:
        for line in file:
            first, _, count = map(int, line.split())
            if first <= NOBODY < first + count:
                return NOBODY
            last = max(last, first + count - 1)
    return last or None


def _unshare_mapped_from_outside(outside: int) -> None:
    """New namespaces, in which root is root and 1 is the user `outside`: a process that stays outside may write that."""
    read, write = os.pipe()
    parent = os.getpid()
    helper = os.fork()
    if helper == 0:
        os.close(write)
        if not os.read(read, 1):
            os._exit(0)  # its parent was killed
        for name in ("uid_map", "gid_map"):
            try:
                _write(f"/proc/{parent}/{name}", f"0 0 1\n1 {outside} 1\n")
            except OSError as error:
                os._exit(error.errno or 1)
        os._exit(0)
    try:
        unshare(ALL_NAMESPACES)
    finally:
        os.write(write, b"x")
        _, status = os.waitpid(helper, 0)
        os.close(read)
        os.close(write)
    if code := os.waitstatus_to_exitcode(status):
        raise OSError(code, f"users cannot be mapped: {os.strerror(abs(code))}")


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)
