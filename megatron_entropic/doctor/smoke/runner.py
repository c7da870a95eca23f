"""Runs the parts of the smoke test, each in a process of its own, and leaves nothing of them behind."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil

from megatron_entropic.doctor.smoke.findings import STEP, Value
from megatron_entropic.doctor.smoke.table import SmokePart
from megatron_entropic.system.orphans import inherit_orphans
from megatron_entropic.system.scratch import scratch_folder

_PACKAGE_ROOT = Path(__file__).resolve().parents[3]
_POLL_S = 0.1
_KILLED_WITHIN_S = 10.0
_LAST_LINES = 15
_OF_A_RANK = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TRITON_INTERPRET")


@dataclass(frozen=True)
class SmokeOutcome:
    """What came of one part. `last_lines` are those of its log, when it failed."""

    part: SmokePart
    result: Literal["passed", "failed", "not tried"]
    seconds: float
    log: Path
    rows: Sequence[tuple[str, dict[str, Value]]] = ()
    untried: Sequence[tuple[str, str]] = ()
    failures: Sequence[str] = ()
    last_lines: Sequence[str] = field(default_factory=list)


def run_parts(
    parts: Sequence[SmokePart], logs: Path, say: Callable[[str], None], show: Callable[[SmokeOutcome], None]
) -> list[SmokeOutcome]:
    """Runs `parts` one after the other, whatever becomes of each; `show` is called with each outcome at once.

    Logs go to `logs`/NAME.log, what else a part keeps to `logs`/NAME. `say` takes lines for
    the terminal: what a part is doing.
    """
    logs.mkdir(parents=True, exist_ok=True)
    inherit_orphans()
    outcomes = []
    for number, part in enumerate(parts, start=1):
        say(f"[{number}/{len(parts)}] {part.name}: {part.shows} (at most {part.limit_s:g} s)")
        outcomes.append(_run_part(part, (logs / f"{part.name}.log").absolute(), say))
        show(outcomes[-1])
    return outcomes


def _run_part(part: SmokePart, log: Path, say: Callable[[str], None]) -> SmokeOutcome:
    start = time.monotonic()
    kept = log.with_suffix("")
    shutil.rmtree(kept, ignore_errors=True)
    others = {process.pid for process in _descendants()}
    with scratch_folder("smoke_") as scratch:
        result = Path(scratch) / "result.json"
        command = [sys.executable, "-u", "-m", "megatron_entropic.doctor.smoke.child", part.run, str(result), str(kept), *part.needs]
        try:  # from before the process is there: a Ctrl-C may come at any moment
            with log.open("wb") as output:
                process = subprocess.Popen(
                    command,
                    env=_environment(scratch),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # a Ctrl-C is for the runner, which then ends the part
                )
            ended = _wait(process, start + part.limit_s, log, say)
        finally:
            left = _end_all(others)
        process.wait()
        problem = _problem(process.returncode, left) if ended else f"not done after {part.limit_s:g} s, its time limit: ended"
        return _outcome(part, time.monotonic() - start, log, result, problem)


def _environment(scratch: str) -> dict[str, str]:
    """This process's environment without what makes a process a rank, and with a folder for temporary files that is emptied."""
    kept = {name: value for name, value in os.environ.items() if name not in _OF_A_RANK}
    path = os.pathsep.join(filter(None, [str(_PACKAGE_ROOT), kept.get("PYTHONPATH")]))
    return kept | {"PYTHONPATH": path, "TMPDIR": scratch, "PYTHONFAULTHANDLER": "1"}


def _wait(process: "subprocess.Popen[bytes]", deadline: float, log: Path, say: Callable[[str], None]) -> bool:
    """Whether the part ended by itself before `deadline`; shows its steps as its log names them."""
    start = time.monotonic()
    with log.open(encoding="utf-8", errors="replace") as lines:
        rest = ""
        while True:
            ended = process.poll() is not None
            *whole, rest = (rest + lines.read()).split("\n")
            for line in whole:
                if line.startswith(STEP):
                    say(f"    {time.monotonic() - start:4.0f} s  {line.removeprefix(STEP)}")
            if ended or time.monotonic() > deadline:
                return ended
            time.sleep(_POLL_S)


def _descendants() -> list[psutil.Process]:
    found: list[psutil.Process] = psutil.Process().children(recursive=True)
    return found


def _end_all(others: Collection[int]) -> list[str]:
    """Kills every descendant of this process but `others`; gives the names of those that a part had left running.

    Those that lost their parent are this process's children by now (`inherit_orphans`), so that none is missed.
    """
    names: dict[int, str] = {}
    deadline, none_in_a_row = time.monotonic() + _KILLED_WITHIN_S, 0
    while none_in_a_row < 2 and time.monotonic() < deadline:  # twice: a list made while a process changes its parent may lack it
        processes = [process for process in _descendants() if process.pid not in others]
        none_in_a_row = 0 if processes else none_in_a_row + 1
        for process in processes:
            with contextlib.suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE:
                    names[process.pid] = process.name()
                    process.kill()
        psutil.wait_procs(processes, timeout=1.0)
    return list(names.values())


def _problem(code: int, left: Sequence[str]) -> str | None:
    """The reason why a part that ended by itself failed at once; None when its findings say how it went."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    if code:
        return f"ended with exit code {code} before it said what it found"
    return f"left processes running, which were ended: {', '.join(sorted(set(left)))}" if left else None


def _outcome(part: SmokePart, seconds: float, log: Path, result: Path, problem: str | None) -> SmokeOutcome:
    try:
        found: dict[str, Any] = json.loads(result.read_bytes())
        rows, untried, failures = ([*found[name]] for name in ("rows", "untried", "failures"))
    except (OSError, ValueError, TypeError, KeyError) as error:
        rows, untried, failures = [], [], []
        problem = problem or f"its findings cannot be read: {type(error).__name__}: {error}"
    failures += [problem] if problem else []
    word: Literal["passed", "failed", "not tried"] = "failed" if failures else "passed" if rows else "not tried"
    last_lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:] if failures else []
    return SmokeOutcome(part, word, seconds, log, rows, untried, failures, last_lines)
