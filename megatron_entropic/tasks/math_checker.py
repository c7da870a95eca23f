"""Whether two answers mean the same, by math-verify in a process of its own.

A policy writes the answers: some make a computer algebra system compute for ever or fill the memory, in places that no Python
exception reaches. The process has limits of both, ends itself at either, and is started again; such an answer is a wrong one.
"""

import importlib.util
import json
import subprocess
import sys

SECONDS = 10
"""For one comparison."""
_MODULE = "megatron_entropic.tasks.math_checker_process"


class MathChecker:
    """The process, started when first needed, and again after it ended itself."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Starts the process. Raises ValueError when math-verify is not installed or does not load."""
        if importlib.util.find_spec("math_verify") is None:
            raise ValueError("task.name=math needs the package math-verify: pip install 'math-verify[antlr4_13_2]'")
        self._process = subprocess.Popen(
            [sys.executable, "-m", _MODULE, str(SECONDS)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline().strip() != "ready":
            raise ValueError(f"task.name=math: {_MODULE} ended with exit code {self._process.wait()} before its first comparison")

    def same(self, known: str, answer: str) -> bool | None:
        """Whether `answer` means `known`; None when `known` cannot be read. False when the limits end the comparison."""
        if self._process is None:
            self.start()
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([known, answer]), file=self._process.stdin, flush=True)
        outcome = self._process.stdout.readline().strip()
        if not outcome:
            self.close()
            return False
        return {"same": True, "different": False, "unreadable": None}[outcome]

    def close(self) -> None:
        """Ends the process; safe to call twice."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def __del__(self) -> None:
        self.close()
