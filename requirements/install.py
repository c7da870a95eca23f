"""Installs a lock file with pip and says how far it is: `python requirements/install.py LOCK [options] [pip's options ...]`.

On a terminal one line that counts the packages; elsewhere a line every ten seconds. pip's own output is shown when it fails.
"""

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

EVERY_S = 10.0
SHOWN_ON_FAILURE = 30
"""Lines of pip's output, from its end."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs pip; returns its exit code."""
    options, pip_options = parser().parse_known_args(arguments)
    pins = chosen(options.lock.read_text(encoding="utf-8"), options.only, options.without)
    status, lines = pip_install(pins, pip_options)
    if status and options.local_index and (lacking := not_found(lines, pins)):
        say(f"{', '.join(lacking)}: not in the configured index, hence from {options.local_index}", 0.0, end="\n")
        status, lines = pip_install(lacking, [*pip_options, "--index-url", options.local_index])
        if not status:
            status, lines = pip_install([pin for pin in pins if pin not in lacking], pip_options)
    if status:
        sys.stdout.writelines(["\n", *lines[-SHOWN_ON_FAILURE:]])
    return status


def parser() -> argparse.ArgumentParser:
    """The options that are not pip's. Never abbreviated: `--only-binary` is pip's."""
    made = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    made.add_argument("lock", type=Path, help="a file of pins, complete: dependencies are not looked for")
    made.add_argument("--only", metavar="NAME", help="this package alone")
    made.add_argument("--without", metavar="NAME", help="all but this package, which is built against the others")
    made.add_argument("--local-index", metavar="URL", help="asked for builds such as 2.13.0+cpu that the configured index lacks")
    return made


def chosen(lock: str, only: str | None = None, without: str | None = None) -> list[str]:
    """The lock file's pins, narrowed. First those of a local build ("+cpu"), so that an index without them refuses within a second."""
    pins = [line.partition(" #")[0].strip() for line in lock.splitlines()]
    pins = [pin for pin in pins if pin and not pin.startswith("#")]
    names = {pin: pin.partition("==")[0] for pin in pins}
    for name in filter(None, (only, without)):
        if name not in names.values():
            raise SystemExit(f"error: {name} is not in the lock file")
    pins = [pin for pin in pins if only in (None, names[pin]) and without != names[pin]]
    return sorted(pins, key=lambda pin: "+" not in pin)


def not_found(lines: Sequence[str], pins: Sequence[str]) -> list[str]:
    """The pins of a local build, when it is one of them that pip did not find."""
    local = [pin for pin in pins if "+" in pin]
    missing = re.findall(r"No matching distribution found for (\S+)", "".join(lines))
    return local if set(missing) & set(local) else []


def pip_install(pins: Sequence[str], pip_options: Sequence[str]) -> tuple[int, list[str]]:
    """Runs pip and shows its progress; returns its exit code and its output."""
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--disable-pip-version-check", "--progress-bar=off"]
    began = shown = time.monotonic()
    done, lines = 0, []
    with subprocess.Popen([*pip, *pip_options, *pins], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            done += line.startswith(("Collecting ", "Requirement already satisfied: "))
            now = time.monotonic()
            if sys.stdout.isatty() or now - shown > EVERY_S or line.startswith("Installing collected"):
                shown = now
                say(describe(line, done, len(pins)), now - began)
    if not process.returncode:
        say(f"{count(len(pins))} installed", time.monotonic() - began, end="\n")
    return process.returncode, lines


def describe(line: str, done: int, total: int) -> str:
    """Progress of pip, from its latest line; with --verbose also that of ninja, which counts the files that it compiles."""
    if line.startswith("Installing collected"):
        return f"unpacking {count(total)}, the longest part"
    if compiled := re.match(r"\s*\[(\d+)/(\d+)\]", line):
        return f"compiled {compiled[1]} of {compiled[2]} files"
    words = line.split()
    name = words[1] if line.startswith(("Collecting ", "Downloading ")) and len(words) > 1 else ""
    return f"{done} of {count(total)}  {name.rsplit('/', 1)[-1]}"


def count(packages: int) -> str:
    """A number of packages, in words."""
    return f"{packages} package" if packages == 1 else f"{packages} packages"


def say(text: str, seconds: float, end: str = "") -> None:
    """Overwrites the line on a terminal, writes a line elsewhere."""
    text = f"{seconds:4.0f} s  {text}"
    if sys.stdout.isatty():
        print(f"\r{text[:100]:<100}", end=end, flush=True)
    else:
        print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
