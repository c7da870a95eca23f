"""What a sandbox is asked and what it replies: plain records."""

from dataclasses import dataclass
from typing import Any, Literal

from megatron_entropic.errors import ReportedError


class SandboxError(ReportedError, RuntimeError):
    """No sandbox can be made, or one was lost; the message says why."""


@dataclass(frozen=True)
class Mechanism:
    """How a program is kept in. `alone`: without namespaces, by limits and refused system calls."""

    alone: bool

    def __str__(self) -> str:
        if self.alone:
            return "limits and a system call filter alone: no processes, network or files written; files of this user can be read"
        return "namespaces of its own (user, process, network, mount, IPC), a read-only view of libraries, limits, a system call filter"


NAMESPACES, ALONE = Mechanism(alone=False), Mechanism(alone=True)


@dataclass(frozen=True)
class SandboxLimits:
    """Bounds of one case.

    `memory_bytes` and `cpu_s` are of each of its `processes` (threads count), `disk_bytes` of all its files together.

    `wall_s` is the backstop for what waits, far above `cpu_s`, so that results do not depend on how busy the machine is.
    """

    cpu_s: int = 6
    wall_s: float = 20.0
    memory_bytes: int = 2**30
    processes: int = 8
    disk_bytes: int = 16 * 2**20
    open_files: int = 64
    output_bytes: int = 2**20


@dataclass(frozen=True)
class SandboxCase:
    """One run of a program, in a process of its own.

    kind "program" gives it `input` to read; "call" calls `function` (of it or of its class Solution) with `arguments`; "expression"
    evaluates `code` with its names; "statements" runs `code`, which raises when it is not content.
    """

    kind: Literal["program", "call", "expression", "statements"] = "program"
    input: str = ""
    function: str = ""
    arguments: tuple[Any, ...] = ()
    code: str = ""


@dataclass(frozen=True)
class CaseResult:
    """How a case ended: "ended" by itself, with exit code `code`; else the limit that ended it.

    `output` is what it printed (UTF-8, damaged bytes replaced), `value` the text of what it returned (inside/values.py; "" when
    nothing came), `errors` the end of its standard error.
    """

    ended: Literal["ended", "cpu", "wall", "output"]
    code: int
    output: str
    value: str
    errors: str
    cpu_s: float

    @property
    def well(self) -> bool:
        """Whether it ended by itself, without an error."""
        return self.ended == "ended" and self.code == 0
