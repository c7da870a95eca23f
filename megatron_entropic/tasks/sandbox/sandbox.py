"""A program in a sandbox, asked one case after the other. What happens inside: inside/."""

import contextlib
import json
import os
import select
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from megatron_entropic.tasks.sandbox.records import CaseResult, Mechanism, SandboxCase, SandboxError, SandboxLimits

_START = "import sys; sys.path.insert(0, {folder!r}); from inside.start import main; sys.path[:] = sys.path[1:] + {packages!r}; main()"
_START_S, _GRACE_S = 120.0, 30.0
"""For getting ready on a machine that is busy with other things, and beyond a case's own limit: then the sandbox itself is ended."""


class Sandbox:
    """A context manager; on leaving it, nothing of the program is left. For one thread at a time: it dies with the thread.

    Args:
        program: Python.
        mechanism: what keeps it in; best_mechanism() says what can.
        prelude: Python that is run in front of it, with the same names.
        packages: whether this interpreter's installed packages are there, beside the standard library.
    Raises SandboxError when the machine does not let it be made.
    """

    def __init__(self, program: str, limits: SandboxLimits, mechanism: Mechanism, *, packages: bool = False, prelude: str = "") -> None:
        self.program, self.limits, self.packages, self.prelude = program, limits, packages, prelude
        self.mechanism = mechanism
        self._process: subprocess.Popen[bytes] | None = None
        self._rest = b""

    def __enter__(self) -> "Sandbox":
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def run(self, case: SandboxCase) -> CaseResult:
        """Runs one case to its end or a limit. Raises SandboxError when the sandbox itself is gone."""
        reply = self._exchange(_request(case), self.limits.wall_s + _GRACE_S)
        cpu_s = float(reply["cpu_s"])
        limit: Any = reply["ended_by"] or ("cpu" if reply["code"] != 0 and cpu_s >= self.limits.cpu_s - 0.1 else "ended")
        return CaseResult(limit, reply["code"], reply["output"], reply["result"], reply["errors"], cpu_s)

    def close(self) -> None:
        """Ends all of it and waits for that; safe to call twice."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()  # the first process inside ends with it, and all others with that one
        try:
            process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()  # the first process inside hears of it
            process.wait()
        process.stdout.close()

    def _start(self) -> None:
        packages = [sysconfig.get_path("purelib")] if self.packages else []
        self._process = subprocess.Popen(
            [
                sys._base_executable,  # type: ignore[attr-defined]  # the interpreter itself, where a virtual environment has a link to it
                "-s",
                "-S",
                "-P",
                "-B",
                "-c",
                _START.format(folder=str(Path(__file__).parent), packages=packages),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"},
            start_new_session=True,
        )
        self._exchange(self._settings(packages), _START_S)

    def _settings(self, packages: list[str]) -> dict[str, Any]:
        limits, alone = self.limits, self.mechanism.alone
        bounds = {
            "CPU": limits.cpu_s,
            "AS": limits.memory_bytes,
            "FSIZE": 0 if alone else limits.disk_bytes,
            "NOFILE": limits.open_files,
            "CORE": 0,
        }
        return {
            "alone": alone,
            "program": [self.prelude, self.program],
            "shown": [*(f"{sys.base_prefix}/{name}" for name in ("lib", "lib64")), *packages],
            "limits": bounds if alone else {**bounds, "NPROC": limits.processes},  # alone, those of the user are counted
            "disk_bytes": limits.disk_bytes,
            "output_bytes": limits.output_bytes,
            "wall_s": limits.wall_s,
        }

    def _exchange(self, request: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """Sends one line and returns the line that answers it. Raises SandboxError, after which the sandbox is closed."""
        process = self._process
        if process is None:
            raise SandboxError("the sandbox is closed")
        assert process.stdin is not None
        assert process.stdout is not None
        deadline = time.monotonic() + timeout_s
        with contextlib.suppress(BrokenPipeError):  # then its output is at an end, too
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
        line = bytearray()
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            chunk = os.read(process.stdout.fileno(), 1 << 16) if ready else b""
            if not chunk:
                self.close()
                raise SandboxError(f"the sandbox {'ended' if ready else f'did not answer in {timeout_s:g} s'}")
            line += chunk
        reply: dict[str, Any] = json.loads(line)
        if "failed" in reply:
            self.close()
            raise SandboxError(f"the sandbox cannot be set up: {reply['failed']}")
        return reply


def _request(case: SandboxCase) -> dict[str, Any]:
    return {
        "kind": case.kind,
        "input": case.input,
        "function": case.function,
        "arguments": list(case.arguments),
        "expression": case.code,
        "statements": case.code,
    }
