"""A run started from the command line, watched from outside through its files and output, and sent signals."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.command_line import MARK, ROOT, marked_processes, unreported


class Running:
    """`megatron-entropic ARGUMENTS`, `unreported`, in the background. A context manager: nothing of it outlives the block."""

    def __init__(self, run_dir: Path, *arguments: str) -> None:
        self.run_dir = run_dir
        self.mark = uuid.uuid4().hex
        self._output = run_dir.with_name(f"{run_dir.name}.{self.mark[:8]}.out")
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "megatron_entropic.cli", *unreported(arguments)],
                cwd=ROOT,
                env={**os.environ, MARK: self.mark},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def __enter__(self) -> "Running":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for process in marked_processes(self.mark):
            process.kill()

    @property
    def output(self) -> str:
        """Output so far."""
        return self._output.read_text(errors="replace")

    @property
    def steps(self) -> int:
        """Lines of metrics.jsonl."""
        path = self.run_dir / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def log(self, rank: int = 0) -> str:
        """The rank's log file, with debug messages."""
        path = self.run_dir / "logs" / f"rank-{rank}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def wait_until(self, true: Callable[[], object], timeout: float = 120.0, poll: float = 0.01) -> bool:
        """Whether it became true before the command ended."""
        deadline = time.monotonic() + timeout
        while self.process.poll() is None:
            if true():
                return True
            assert time.monotonic() < deadline, f"waited in vain; it printed:\n{self.output}"
            time.sleep(poll)
        return False

    def ranks(self) -> dict[int, psutil.Process]:
        """Its rank processes, by rank."""
        found = {}
        for process in marked_processes(self.mark):
            try:
                if "megatron_entropic.launch.worker" in process.cmdline():
                    found[int(process.environ()["RANK"])] = process
            except psutil.NoSuchProcess:
                continue
        return found

    def send(self, signum: signal.Signals) -> None:
        """Signals the launcher."""
        self.process.send_signal(signum)

    def wait(self, timeout: float = 120.0) -> int:
        """Its exit code, once nothing of it is left."""
        code = self.process.wait(timeout)
        deadline = time.monotonic() + 40.0  # ranks whose launcher was killed unwind by themselves
        while left := marked_processes(self.mark):
            assert time.monotonic() < deadline, [process.cmdline() for process in left]
            time.sleep(0.05)
        return code
