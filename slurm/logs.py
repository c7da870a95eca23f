"""One view of everything a run's processes wrote: `python -m slurm.logs RUN_DIR [--follow]`, every line under its speaker's name.

Lines are in the order of their times where they carry any, else after the line before them in their file.
"""

from __future__ import annotations

import argparse
import heapq
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

_DATED = re.compile(r"^(\d{4}-)?(\d{2}-\d{2}) (\d{2}:\d{2}:\d{2}(?:[.,]\d+)?)|^.{0,60}?\b(\d{2}-\d{2}) (\d{2}:\d{2}:\d{2})\b")
FOLLOW_S = 0.5


def speaker_of(path: Path) -> str:
    """The writer of a log file: `rank-3.log` and `rank-3.out` are rank 3's, `vllm_0.log` is server 0's, `fleet-n3.out` node n3's."""
    stem = path.stem
    for pattern, name in ((r"rank-(\d+)", "rank {}"), (r"vllm_(\d+)", "server {}"), (r"fleet-(.+)", "fleet {}")):
        match = re.fullmatch(pattern, stem)
        if match:
            return name.format(match[1])
    return stem


def log_files(run_dir: Path) -> list[Path]:
    """The run's log files. Raises FileNotFoundError when there are none."""
    found = sorted(path for path in (run_dir / "logs").glob("*") if path.suffix in (".log", ".out") and path.is_file())
    if not found:
        raise FileNotFoundError(f"{run_dir}/logs holds no logs: is {run_dir} the folder of a run?")
    return found


def merged(run_dir: Path) -> Iterator[tuple[str, str]]:
    """(speaker, line) of all files, by time."""
    streams = [_timed(path, number) for number, path in enumerate(log_files(run_dir))]
    for _, _, _, speaker, line in heapq.merge(*streams):
        yield speaker, line


def _timed(path: Path, number: int) -> Iterator[tuple[str, int, int, str, str]]:
    """The lines of a file with a key that never decreases: the latest time seen (month-day and time of day) in the file so far."""
    latest = ""
    speaker = speaker_of(path)
    with path.open(encoding="utf-8", errors="replace") as file:
        for position, line in enumerate(file):
            latest = max(latest, _time_of(line))
            yield latest, number, position, speaker, line.rstrip("\n")


def _time_of(line: str) -> str:
    """Month, day and time of day of a line, or nothing."""
    match = _DATED.search(line[:120])
    if not match:
        return ""
    return f"{match[2] or match[4]} {(match[3] or match[5]).replace('.', ',')}"


def follow(run_dir: Path, speakers: str, out: TextIO) -> None:
    """Prints new lines as they are written, of files that appear later too, until interrupted."""
    offsets: dict[Path, int] = {path: path.stat().st_size for path in log_files(run_dir)}
    while True:
        for path in log_files(run_dir):
            with path.open("rb") as file:
                file.seek(offsets.get(path, 0))
                text = file.read()
            whole = text[: text.rfind(b"\n") + 1]
            offsets[path] = offsets.get(path, 0) + len(whole)
            if re.search(speakers, speaker_of(path)):
                for line in whole.decode(errors="replace").splitlines():
                    print(f"[{speaker_of(path)}] {line}", file=out, flush=True)
        time.sleep(FOLLOW_S)


def main() -> None:
    """Prints the merged logs; with --follow follows what is written later."""
    parser = argparse.ArgumentParser(prog="python -m slurm.logs", description=__doc__)
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    parser.add_argument("--follow", action="store_true", help="then follow new lines, until interrupted")
    parser.add_argument("--only", default="", metavar="REGEX", help="speakers to show, such as 'rank 0|server'")
    options = parser.parse_args()
    try:
        for speaker, line in merged(options.run_dir):
            if re.search(options.only, speaker):
                print(f"[{speaker}] {line}")
        if options.follow:
            follow(options.run_dir, options.only, sys.stdout)
    except FileNotFoundError as error:
        print(f"slurm.logs: error: {error}", file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, BrokenPipeError):
        sys.exit(0)


if __name__ == "__main__":
    main()
