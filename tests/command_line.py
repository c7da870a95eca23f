"""Runs the command line as a user does, and finds every process it may have left behind."""

import os
import subprocess
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
MARK = "MEGATRON_ENTROPIC_TESTMARK"


@dataclass(frozen=True)
class Outcome:
    """How a command ended. `left_behind` are command lines of processes it started that are still there."""

    code: int
    output: str
    left_behind: list[list[str]]


def unreported(arguments: Sequence[str]) -> list[str]:
    """A command that draws no report at the end of a new run, which takes as long as the training of most tests."""
    new_run = arguments[:1] in (["train"], ("train",)) and len(arguments) > 1 and not {"--resume", "--help"} & set(arguments)
    asked = any(word.startswith("trainer.report=") for word in arguments)
    return [*arguments, "trainer.report=false"] if new_run and not asked else [*arguments]


def megatron_entropic(*arguments: str, timeout: float = 300.0, environ: dict[str, str] | None = None) -> Outcome:
    """Runs `megatron-entropic ARGUMENTS` from the checkout, `unreported`; output is stdout and stderr together."""
    mark = uuid.uuid4().hex
    try:
        done = subprocess.run(
            [sys.executable, "-m", "megatron_entropic.cli", *unreported(arguments)],
            cwd=ROOT,
            env={**os.environ, **(environ or {}), MARK: mark},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        left = marked_processes(mark)
        return Outcome(done.returncode, done.stdout, [process.cmdline() for process in left])
    finally:
        for process in marked_processes(mark):
            process.kill()


def marked_processes(mark: str) -> list[psutil.Process]:
    """Live processes that inherited the mark."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == mark:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found
