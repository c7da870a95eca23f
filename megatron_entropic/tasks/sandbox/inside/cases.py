"""The sandbox's first process: runs one case after the other, each in a process of its own, and ends all that it leaves behind.

Requests and replies are lines of JSON over two descriptors. When the requests end, so does the process, and with it, where it is the
first of its namespace, everything in it.
"""

import contextlib
import json
import os
import select
import signal
import time
from collections.abc import Mapping
from typing import Any, NoReturn

from . import answer, view
from .lines import Lines

_CHUNK = 1 << 16
_SHOWN_ERRORS = 2000
"""Bytes kept of the end of what a case writes to its standard error."""


def serve(requests: Lines, replies: int, settings: Mapping[str, Any], owner: int, *, alone: bool) -> NoReturn:
    """Answers each case with how it ended, until there are no more."""
    while (line := requests.next()) is not None:
        case = json.loads(line)
        if not alone:
            view.fresh_work(settings["disk_bytes"], owner)
        reply = _RunningCase(case, settings, requests.descriptor).run(settings["program"], owner, alone=alone)
        send(replies, reply)
    os._exit(0)


def send(replies: int, reply: Mapping[str, Any]) -> None:
    """Writes one line."""
    line = json.dumps(reply).encode() + b"\n"
    while line:
        line = line[os.write(replies, line) :]


class _RunningCase:
    """One case: its pipes, what came through them, and how it ended."""

    def __init__(self, case: Mapping[str, Any], settings: Mapping[str, Any], lifeline: int) -> None:
        self.case, self.settings, self.lifeline = case, settings, lifeline
        self.read, self.written = {}, {}
        for name in ("output", "errors", "result"):
            self.read[name], self.written[name] = os.pipe()
        self.got: dict[str, bytes] = dict.fromkeys(self.read, b"")
        self.ended_by = ""

    def run(self, program: list[str], owner: int, *, alone: bool) -> dict[str, Any]:
        """Runs it to its end, and says how that was."""
        given = os.memfd_create("input", 0)
        with open(given, "wb", closefd=False) as file:
            file.write(self.case.get("input", "").encode("utf-8", "surrogatepass"))
        os.lseek(given, 0, os.SEEK_SET)
        child = os.fork()
        if child == 0:
            self._take_descriptors(given)
            answer.run(program, self.case, self.settings["limits"], owner, alone=alone)
        for descriptor in (given, *self.written.values()):
            os.close(descriptor)
        self._watch(child)
        status, usage = _end_all(child)
        self._drain()
        for descriptor in self.read.values():
            os.close(descriptor)
        return self._reply(status, usage.ru_utime + usage.ru_stime)

    def _take_descriptors(self, given: int) -> None:
        ours = (given, self.written["output"], self.written["errors"], self.written["result"])
        high = [os.dup2(descriptor, 100 + number) for number, descriptor in enumerate(ours)]
        for number, descriptor in enumerate(high):
            os.dup2(descriptor, number)
        os.closerange(4, 1024)

    def _watch(self, child: int) -> None:
        """Returns when the process has ended, or reached a limit; ends this one when nobody waits for it any more."""
        deadline = time.monotonic() + self.settings["wall_s"]
        ended = os.pidfd_open(child)
        poll = select.poll()
        names = {descriptor: name for name, descriptor in self.read.items()}
        for descriptor in (ended, self.lifeline, *names):
            poll.register(descriptor, select.POLLIN)
        try:
            while not self.ended_by:
                left = deadline - time.monotonic()
                if left <= 0:
                    self.ended_by = "wall"
                    return
                for descriptor, _ in poll.poll(left * 1000 + 1):
                    if descriptor == ended:
                        return
                    if descriptor == self.lifeline:
                        _kill(child)
                        os._exit(1)
                    if not self._take(names[descriptor]):
                        poll.unregister(descriptor)
        finally:
            os.close(ended)

    def _take(self, name: str) -> bool:
        """Reads what has come; whether more may come."""
        got = os.read(self.read[name], _CHUNK)
        self.got[name] += got
        if name == "errors":
            self.got[name] = self.got[name][-_SHOWN_ERRORS:]
        elif len(self.got[name]) > self.settings["output_bytes"]:
            self.ended_by = "output"
        return bool(got)

    def _drain(self) -> None:
        """Reads what is left in the pipes, once nobody writes any more."""
        for name in self.read:
            while not self.ended_by and self._take(name):
                pass

    def _reply(self, status: int, cpu_s: float) -> dict[str, Any]:
        code = os.waitstatus_to_exitcode(status)
        return {
            "ended_by": self.ended_by,
            "code": code,
            "cpu_s": cpu_s,
            "output": "" if self.ended_by else self.got["output"].decode("utf-8", "replace"),
            "result": "" if self.ended_by else self.got["result"].decode("utf-8", "replace"),
            "errors": self.got["errors"].decode("utf-8", "replace"),
        }


def _kill(child: int) -> None:
    """Ends the answer's process; where this is the first process of a namespace, all in it."""
    os.kill(-1 if os.getpid() == 1 else child, signal.SIGKILL)


def _end_all(child: int) -> tuple[int, Any]:
    """(status, usage) of the answer's process; on return nothing that it started is there any more."""
    found: tuple[int, Any] | None = None
    while True:
        with contextlib.suppress(ProcessLookupError):  # all have ended; some may wait to be collected
            _kill(child)
        try:
            pid, status, usage = os.wait4(-1, 0)
        except ChildProcessError:
            assert found is not None, "the answer's process was a child of this one"
            return found
        if pid == child:
            found = status, usage
