"""Cores of this machine, and its folders: space, and whether they can be written."""

import os
import shutil
import tempfile
from pathlib import Path

_PROBE_BYTES = 1 << 20


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
