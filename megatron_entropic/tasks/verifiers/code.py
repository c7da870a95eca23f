"""Programs, judged by tests in a sandbox. Forms of tests: code_tests.py; what keeps programs in: tasks/sandbox, docs/rewards.md."""

import time
from collections.abc import Mapping
from typing import Any

from megatron_entropic.tasks.row_values import BadRowError
from megatron_entropic.tasks.sandbox import Mechanism, Sandbox, SandboxLimits, best_mechanism
from megatron_entropic.tasks.verifiers.code_tests import CodeTest, of_answer, read_tests, to_answer
from megatron_entropic.tasks.verifiers.extraction import after_thinking, fenced
from megatron_entropic.tasks.verifiers.options import Options

_LANGUAGES = ("python", "python3", "py", "")
_LONGEST = 100_000
"""Characters of a program."""
PRELUDE = (
    "import sys, re, math, string, random, copy, json, collections, functools, itertools, heapq, bisect, operator\n"
    "from typing import *\nfrom collections import *\nfrom functools import *\nfrom itertools import *\nfrom heapq import *\n"
    "from bisect import *\nfrom math import *\nfrom builtins import *\n"
)
"""Names that data sets of functions take for granted, in front of programs that are called."""


class Code:
    """Scores 1 when a program passes all its tests, or, `partial`, the fraction that it passes."""

    reads: tuple[str, ...] = ()

    def __init__(
        self, limits: SandboxLimits, *, total_s: float, partial: bool, tolerance: float, packages: bool, allow_unsandboxed: bool
    ) -> None:
        self.limits, self.total_s, self.partial, self.tolerance = limits, total_s, partial, tolerance
        self.packages, self.allow_unsandboxed = packages, allow_unsandboxed
        self._mechanism: Mechanism | None = None

    def start(self) -> None:
        """Finds out what keeps programs in. Raises SandboxError where nothing does."""
        self._mechanism = self._mechanism or best_mechanism(allow_unsandboxed=self.allow_unsandboxed)

    def known_answer(self, text: str, row: Mapping[str, Any]) -> str:
        """The tests, in one form. Raises BadRowError."""
        if not text.strip():
            raise BadRowError("there are no tests")
        return to_answer(read_tests(text, row))

    def score(self, answer: str, row: Mapping[str, Any], response: str) -> float:
        """In [0, 1]. Ends at the first test that fails unless `partial`; tests beyond the time for all of them have failed."""
        program = program_of(response)
        if not program.strip() or len(program) > _LONGEST or "\0" in program:
            return 0.0
        self.start()
        tests = of_answer(answer)
        passed = self._passed(program, tests)
        return passed / len(tests) if self.partial else float(passed == len(tests))

    def _passed(self, program: str, tests: list[CodeTest]) -> int:
        assert self._mechanism is not None
        called = any(test.kind != "program" for test in tests)
        deadline = time.monotonic() + self.total_s
        passed = 0
        with Sandbox(program, self.limits, self._mechanism, packages=self.packages, prelude=PRELUDE if called else "") as sandbox:
            for test in tests:
                if time.monotonic() > deadline:
                    break
                good = test.passed(sandbox.run(test.case()), self.tolerance)
                passed += good
                if not good and not self.partial:
                    break
        return passed


def program_of(response: str) -> str:
    """The last closed ```python block after the thinking, else the last without a language, else everything that is left."""
    said = after_thinking(response)
    block = fenced(said, _LANGUAGES[:-1])
    block = fenced(said, _LANGUAGES) if block is None else block
    return said if block is None else block


def make_code(options: Mapping[str, Any]) -> Code:
    """Options: partial, tolerance (0), packages, allow_unsandboxed, total_limit_s (30), and the limits of one test: cpu_limit_s (6),
    wall_limit_s (20), memory_mb (1024), processes (8), disk_mb (16), output_mb (1).
    """
    sizes = {"memory_mb": (1024, 64, 2**20), "disk_mb": (16, 1, 2**14), "output_mb": (1, 1, 64)}
    others = ("partial", "tolerance", "packages", "allow_unsandboxed", "total_limit_s", "cpu_limit_s", "wall_limit_s", "processes")
    read = Options("code", options, *others, *sizes)
    memory, disk, output = (
        2**20 * read.integer(name, default, at_least=least, at_most=most) for name, (default, least, most) in sizes.items()
    )
    limits = SandboxLimits(
        cpu_s=read.integer("cpu_limit_s", 6, at_least=1, at_most=3600),
        wall_s=read.number("wall_limit_s", 20.0, at_least=0.1, at_most=36000),
        memory_bytes=memory,
        processes=read.integer("processes", 8, at_least=1, at_most=1024),
        disk_bytes=disk,
        output_bytes=output,
    )
    return Code(
        limits,
        total_s=read.number("total_limit_s", 30.0, at_least=0.1, at_most=36000),
        partial=read.flag("partial"),
        tolerance=read.number("tolerance", 0.0, at_most=1.0),
        packages=read.flag("packages"),
        allow_unsandboxed=read.flag("allow_unsandboxed"),
    )
