"""history.jsonl: when a run was started, by which command, and how each start ended. One JSON object a line, appended."""

import json
import os
import re
import shlex
import signal
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from megatron_entropic.config.secrets import argument_shown
from megatron_entropic.system.stop_signal import EXIT_STOPPED

FILE = "history.jsonl"
_ERROR = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) (?:ERROR|CRITICAL) [^:]+: (?:error: )?(.*)$")


@dataclass(frozen=True)
class Start:
    """One start of a run. `ended` and `code` are None while it runs, and for good when it was killed before it could say."""

    command: str
    host: str
    started: datetime
    ended: datetime | None = None
    code: int | None = None
    error: str | None = None
    """The error that ended it, in one line; None after success."""


def record_start(run_dir: Path, arguments: Sequence[str]) -> None:
    """Notes that `megatron-entropic ARGUMENTS` starts now."""
    _append(run_dir, {"command": shlex.join(["megatron-entropic", *map(argument_shown, arguments)]), "host": socket.gethostname()})


def record_end(run_dir: Path, code: int) -> None:
    """Notes that the latest start ended with this exit code, and the error that its ranks logged."""
    starts = read_history(run_dir)
    if starts:
        _append(run_dir, {"code": code, "error": _cause(run_dir / "logs", starts[-1].started, code)})


def read_history(run_dir: Path) -> list[Start]:
    """The starts in their order; none for runs of versions that kept no history. Lines torn by a crash are left out."""
    path = run_dir / FILE
    starts: list[Start] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            event = json.loads(line)
            time = datetime.fromisoformat(event["time"])
        except (ValueError, KeyError, TypeError):
            continue
        if "command" in event:
            starts.append(Start(str(event["command"]), str(event.get("host", "")), time))
        elif starts:
            last = starts[-1]
            starts[-1] = Start(last.command, last.host, last.started, time, event.get("code"), event.get("error"))
    return starts


def _append(run_dir: Path, event: dict[str, object]) -> None:
    line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **event}) + "\n"
    with (run_dir / FILE).open("ab+") as file:
        if file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":  # torn by a crash
            line = "\n" + line
        file.write(line.encode())


def _cause(log_dir: Path, since: datetime, code: int) -> str | None:
    """The first error in the ranks' logs since then: what follows it only followed from it. Else what the exit code says."""
    if code == 0:
        return None
    if code == EXIT_STOPPED:
        return "asked to stop: saved, can be resumed"
    began = since.astimezone().strftime("%Y-%m-%d %H:%M:%S,000")  # as the logs have it, in local time
    found = [match.groups() for path in log_dir.glob("rank-*.log") for match in map(_ERROR.match, _lines(path)) if match]
    if recent := sorted(error for error in found if error[0] >= began):
        return str(recent[0][1])
    number = code - 128 if code > 128 else -code
    name = signal.Signals(number).name if number in {*signal.Signals} else ""
    return f"ended by {name}" if name else f"exit code {code}; see {log_dir}"


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines()
