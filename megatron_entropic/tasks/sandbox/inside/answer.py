"""The process that runs an answer, from the fork to its end: limits, privileges given up, then the program."""

import builtins
import os
import resource
import sys
import traceback
from collections.abc import Mapping
from types import ModuleType
from typing import Any, NoReturn

from . import system_call_filter, values
from .system_calls import drop_capabilities

RESULT = 3
"""The descriptor of what a function returned."""
_SHOWN_ENVIRONMENT = ("PATH", "LANG")


def run(program: list[str], case: Mapping[str, Any], limits: Mapping[str, int], owner: int, *, alone: bool) -> NoReturn:
    """Runs `program`, piece by piece, on `case`, in a process forked for that, whose descriptors 0 to 3 are its own; ends it."""
    code = 1
    try:
        _give_up(limits, owner, alone=alone)
        code = _run(program, case)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    except BaseException:  # noqa: BLE001 - of the answer; its end is the process's
        traceback.print_exc()
    finally:
        _end(code)


def _give_up(limits: Mapping[str, int], owner: int, *, alone: bool) -> None:
    os.setsid()
    if owner and not alone:
        if os.getuid() == 0:
            os.setgroups([])
        os.setresgid(owner, owner, owner)
        os.setresuid(owner, owner, owner)
    for name in [name for name in os.environ if name not in _SHOWN_ENVIRONMENT]:
        del os.environ[name]
    for name, bound in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        _, most = resource.getrlimit(kind)
        bound = bound if most == resource.RLIM_INFINITY else min(bound, most)
        resource.setrlimit(kind, (bound, bound))
    drop_capabilities()
    system_call_filter.install(alone=alone)


def _run(program: list[str], case: Mapping[str, Any]) -> int:
    module = ModuleType("__main__" if case["kind"] == "program" else "answer")
    sys.modules[module.__name__] = module
    sys.argv = ["answer.py"]
    builtins.exit = builtins.quit = sys.exit  # type: ignore[assignment]  # those of the module site, which is not loaded
    sys.stdin = os.fdopen(0, encoding="utf-8", errors="surrogateescape", closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", errors="surrogateescape", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False, buffering=1)
    space = module.__dict__
    for source in program:
        exec(compile(source, "answer.py", "exec"), space)
    if case["kind"] == "program":
        return 0
    _report(_value(case, space))
    return 0


def _value(case: Mapping[str, Any], space: dict[str, Any]) -> object:
    """What a case asks of a program that has been run, with the program's names."""
    if case["kind"] == "call":
        function = space.get(case["function"])
        if function is None and isinstance(space.get("Solution"), type):
            function = getattr(space["Solution"](), case["function"])
        if function is None:
            raise NameError(f"the answer has no function {case['function']}")
        return function(*case["arguments"])
    if case["kind"] == "expression":
        return eval(compile(case["expression"], "test", "eval"), space)
    exec(compile(case["statements"], "tests", "exec"), space)
    return True


def _report(value: object) -> None:
    text = values.to_text(value).encode()
    while text:
        text = text[os.write(RESULT, text) :]


def _end(code: int) -> NoReturn:
    """Ends as Python would: threads first, then what is still to be written."""
    try:
        if threading := sys.modules.get("threading"):
            for thread in threading.enumerate():
                if thread is not threading.current_thread() and not thread.daemon:
                    thread.join()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    except BaseException:  # noqa: BLE001 - of the answer, which may have put anything there
        code = code or 1
    finally:
        os._exit(code & 0xFF)
