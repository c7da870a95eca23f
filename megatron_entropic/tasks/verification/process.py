"""The process of worker.py: makes one verifier, then answers one JSON line with one JSON line until its input ends.

First line in: {"factory", "options", "seed", "cpu_s", "memory_bytes"}; out: {"ready": true}, or {"failed": text} and the end.
Then in: {"prompt", "data", "response"}; out: {"verdict": the fields of a Verdict}, or {"limit": "memory"} and the end. A verdict with
"last": true is followed by the end, too: the verifier left the process unfit for another answer.

The CPU limit is a timer of the process's own CPU time whose signal keeps its default action, so it ends the process wherever it
computes: in Python, in C, in a loop that swallows exceptions. CPU time, because a wall-clock limit would make rewards depend on
what else the machine does.
"""

import ctypes
import dataclasses
import json
import os
import resource
import signal
import sys
from collections.abc import Mapping
from typing import Any, TextIO

from megatron_entropic.system.named_functions import load_module
from megatron_entropic.tasks.task import Problem, Verifier
from megatron_entropic.tasks.verification.judging import described, judge

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serves stdin and stdout until stdin ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # also when it computes while its parent dies
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(signum, signal.SIG_IGN)  # a scheduler sends them to all of a job, whose ranks then save; it ends with them
    requests, replies = _take_over_streams()
    settings = json.loads(requests.readline())
    resource.setrlimit(resource.RLIMIT_AS, (settings["memory_bytes"], settings["memory_bytes"]))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    try:
        verifier = make_verifier(settings["factory"], settings["options"], settings["seed"])
    except Exception as error:  # noqa: BLE001 - reported to the parent, which names the task
        print(json.dumps({"failed": described(error)}), file=replies)
        return
    print(json.dumps({"ready": True}), file=replies)
    own = os.getpid()
    for line in requests:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, settings["cpu_s"])
        reply = _reply(verifier, Problem(request["prompt"], request["data"]), request["response"])
        signal.setitimer(signal.ITIMER_PROF, 0)
        if os.getpid() != own:
            os._exit(1)  # a copy that the verifier forked off and that came back from it: the other one answers
        print(json.dumps(reply), file=replies)
        if "limit" in reply or "last" in reply:
            return  # memory that ran out once may be in pieces


def _take_over_streams() -> tuple[TextIO, TextIO]:
    """(requests, replies) under descriptors of their own. A verifier that reads finds nothing, what it prints belongs to the log."""
    requests = os.fdopen(os.dup(0), encoding="utf-8")
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return requests, replies


def make_verifier(factory: str, options: Mapping[str, Any], seed: int) -> Verifier:
    """Calls `factory` ("package.module:function", "file.py:function") with (options, seed). Raises what that raises."""
    location, _, function = factory.rpartition(":")
    made: Verifier = getattr(load_module(location), function)(options, seed)
    return made


def _reply(verifier: Verifier, problem: Problem, response: str) -> dict[str, Any]:
    try:
        verdict = judge(verifier, problem, response, passing=(MemoryError,))
    except MemoryError:
        return {"limit": "memory"}
    reply: dict[str, Any] = {"verdict": dataclasses.asdict(verdict)}
    return reply if _streams_are_open() else {**reply, "last": True}


def _streams_are_open() -> bool:
    """Whether the next verification can print and read as this one could: a verifier may have closed what it did not open."""
    try:
        for descriptor in (0, 1, 2):
            os.fstat(descriptor)
    except OSError:
        return False
    return not any(stream is not None and stream.closed for stream in (sys.stdin, sys.stdout, sys.stderr))


if __name__ == "__main__":
    main()
