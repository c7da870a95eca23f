"""Hardware inventory: GPUs and their driver, memory, cores, free space."""

import csv
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

_GPU_FIELDS = ("name", "driver_version", "memory.total", "memory.used", "ecc.errors.uncorrected.volatile.total")
_PROBE_BYTES = 1 << 20


@dataclass(frozen=True)
class GPU:
    """One GPU as nvidia-smi tells it; memory in MiB; `uncorrected` counts memory errors since the driver was loaded."""

    name: str
    driver: str
    memory: int
    used: int
    uncorrected: int


class GPUQueryError(RuntimeError):
    """nvidia-smi is there but does not answer: the driver is broken; the message holds its words."""


def find_gpus(timeout_s: float = 30.0) -> list[GPU]:
    """The GPUs of this machine; none where there is no nvidia-smi. Raises GPUQueryError."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", f"--query-gpu={','.join(_GPU_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise GPUQueryError(f"nvidia-smi: {error}") from error
    if done.returncode:
        raise GPUQueryError(f"nvidia-smi: {(done.stdout or done.stderr).strip().splitlines()[:1]}")
    return parse_gpus(done.stdout)


def parse_gpus(text: str) -> list[GPU]:
    """The GPUs in nvidia-smi's CSV of the fields above; numbers it does not know ("[N/A]") are 0."""

    def number(word: str) -> int:
        return int(word) if word.isdigit() else 0

    rows = csv.reader(text.strip().splitlines(), skipinitialspace=True)
    return [GPU(name, driver, number(memory), number(used), number(errors)) for name, driver, memory, used, errors in rows]


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))


def existing(path: Path) -> Path:
    """`path`, or the nearest folder above it that exists: where `path` would be made."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def free_bytes(path: Path) -> int:
    """Bytes this user may still write where `path` is or would be."""
    return shutil.disk_usage(existing(path)).free


def write_problem(path: Path) -> str | None:
    """The reason why no file can be written where `path` is or would be, or None. Writes 1 MiB and removes it."""
    folder = existing(path)
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".megatron_entropic_") as file:
            file.write(os.urandom(_PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return f"cannot write in {folder}: {error.strerror}"
    return None


def temporary_folder() -> Path:
    """Folder of temporary files: TMPDIR, whether it is usable or not, else what Python finds."""
    return Path(os.environ["TMPDIR"]) if os.environ.get("TMPDIR") else Path(tempfile.gettempdir())
