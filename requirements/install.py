"""Installs a lock file with pip and says how far it is: `python requirements/install.py LOCK [pip's options ...]`.

On a terminal one line that counts the packages; elsewhere a line every ten seconds. pip's own output is shown when it fails.
"""

import subprocess
import sys
import time
from pathlib import Path

EVERY_S = 10.0


def main() -> int:
    """Runs pip; returns its exit code."""
    lock, options = Path(sys.argv[1]), sys.argv[2:]
    total = sum(1 for line in lock.read_text().splitlines() if line.strip() and not line.startswith(("#", "-")))
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--disable-pip-version-check", "--progress-bar=off", "-r", str(lock)]
    began = shown = time.monotonic()
    done, lines = 0, []
    with subprocess.Popen([*pip, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            done += line.startswith(("Collecting ", "Requirement already satisfied: "))
            now = time.monotonic()
            if sys.stdout.isatty() or now - shown > EVERY_S or line.startswith("Installing collected"):
                shown = now
                say(describe(line, done, total), now - began)
    if process.returncode:
        sys.stdout.writelines(["\n", *lines[-30:]])
    else:
        say(f"{total} packages installed", time.monotonic() - began, end="\n")
    return process.returncode


def describe(line: str, done: int, total: int) -> str:
    """Progress of pip, from its latest line."""
    words = line.split()
    if line.startswith("Installing collected"):
        return f"unpacking {total} packages, the longest part"
    name = words[1] if line.startswith(("Collecting ", "Downloading ")) and len(words) > 1 else ""
    return f"{done} of {total} packages  {name.rsplit('/', 1)[-1]}"


def say(text: str, seconds: float, end: str = "") -> None:
    """Overwrites the line on a terminal, writes a line elsewhere."""
    text = f"{seconds:4.0f} s  {text}"
    if sys.stdout.isatty():
        print(f"\r{text[:100]:<100}", end=end, flush=True)
    else:
        print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
