"""One verifier in a process of its own, with limits for each answer. What happens inside: process.py."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from typing import Any

from megatron_entropic.tasks.task import Problem
from megatron_entropic.tasks.verification.records import Limits, Verdict, VerifierError, VerifierSpec

_MODULE = "megatron_entropic.tasks.verification.process"
_START_S = 300.0
"""Importing a computer algebra system on a machine that is busy with other things takes a while."""
_LONGEST_REPLY = 1 << 16


class _Ended(Exception):  # noqa: N818 - an event, not an error
    """The process closed its output; `code` is how it ended (negative: a signal)."""

    def __init__(self, code: int) -> None:
        self.code = code


class VerifierWorker:
    """The process, started when first needed, and again after an answer ended it. For one thread at a time.

    It dies with the thread that started it, at the latest (Linux), and does not hear the terminal's Ctrl-C.
    """

    def __init__(self, spec: VerifierSpec, limits: Limits) -> None:
        self.spec = spec
        self.limits = limits
        self._process: subprocess.Popen[bytes] | None = None
        self._used = False
        """Whether the process has judged an answer."""
        self._killed = False

    def start(self) -> None:
        """Starts the process unless it runs. Raises VerifierError saying why it cannot make its verifier."""
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        self._process = subprocess.Popen(
            [sys.executable, "-m", _MODULE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        settings = {
            "factory": self.spec.factory,
            "options": dict(self.spec.options),
            "seed": self.spec.seed,
            "cpu_s": self.limits.cpu_s,
            "memory_bytes": self.limits.memory_bytes,
        }
        try:
            reply = self._exchange(settings, _START_S)
        except _Ended as ended:
            raise VerifierError(f"the verifier {self.spec.factory} ended with exit code {ended.code} while it was made") from None
        if reply is None or "ready" not in reply:
            self.close()
            why = f"was not ready after {_START_S:g} s" if reply is None else f"cannot be made: {reply['failed']}"
            raise VerifierError(f"the verifier {self.spec.factory} {why}")
        self._used = False

    def judge(self, problem: Problem, response: str) -> Verdict:
        """The verdict on one answer, within the limits. Raises VerifierError only when no process can be started.

        A process that ends after it judged other answers may have been brought down by one of those: the answer gets a new process.
        """
        self.start()
        used, self._used = self._used, True
        request = {"prompt": problem.prompt, "data": dict(problem.data), "response": response}
        try:
            reply = self._exchange(request, self.limits.wall_s)
        except _Ended as ended:
            if used and not self._killed and ended.code != -signal.SIGPROF:
                return self.judge(problem, response)
            return self._verdict_on_end(ended.code)
        if reply is None:
            self.close()
            return Verdict(0.0, "limit", f"took longer than reward.wall_limit_s={self.limits.wall_s:g}")
        if "failed" in reply:
            return Verdict(0.0, "failed", reply["failed"])
        if "limit" in reply:
            self.close()
            return Verdict(0.0, "limit", f"needed more memory than reward.memory_gb={self.limits.memory_bytes / 2**30:g}")
        if "last" in reply:
            self.close()
        return Verdict(**reply["verdict"])

    def _verdict_on_end(self, code: int) -> Verdict:
        if code == -signal.SIGPROF:
            return Verdict(0.0, "limit", f"took more CPU time than reward.cpu_limit_s={self.limits.cpu_s:g}")
        if code < 0:
            return Verdict(0.0, "failed", f"its process was ended by {signal.Signals(-code).name}")
        return Verdict(0.0, "failed", f"its process ended with exit code {code}")

    def _exchange(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any] | None:
        """Sends one line and returns the line that answers it; None when neither that nor its end comes in time. Raises _Ended."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        deadline = time.monotonic() + timeout_s
        with contextlib.suppress(BrokenPipeError):  # then its output is at an end too
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
        line = b""
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                return None
            chunk = os.read(process.stdout.fileno(), _LONGEST_REPLY)
            if not chunk:
                try:
                    code = process.wait(max(0.0, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    return None
                self.close()
                raise _Ended(code)
            line += chunk
        try:
            reply: dict[str, Any] = json.loads(line)
        except ValueError:  # the verifier wrote to a descriptor that is not its own
            self.close()
            return {"failed": "its process replied with something else"}
        return reply

    def kill(self) -> None:
        """Ends the process from any thread; one that waits for its answer gets a failed verdict."""
        self._killed = True
        process = self._process
        if process is not None:
            process.kill()

    def close(self) -> None:
        """Ends the process and what it started; safe to call twice."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
