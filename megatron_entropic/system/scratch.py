"""Temporary folders with room for a socket: the kernel takes no socket path of more than 107 bytes."""

import os
import tempfile
from pathlib import Path

LONGEST = 64
"""Bytes of a folder's path: sockets in it are up to 40 bytes longer (zmq's carry a UUID, multiprocessing's lie a folder deeper)."""
_SHORT = ("/tmp", "/var/tmp", "/dev/shm")


def scratch_folder(prefix: str) -> "tempfile.TemporaryDirectory[str]":
    """A new folder PREFIX... in the folder for temporary files, or where that one's path is too long in a short one.

    Raises OSError naming TMPDIR when there is none that can be written.
    """
    usual = tempfile.gettempdir()
    for parent in (usual, *_SHORT):
        if len(os.fsencode(parent)) + len(prefix) + 9 <= LONGEST and os.access(parent, os.W_OK | os.X_OK) and Path(parent).is_dir():
            return tempfile.TemporaryDirectory(prefix=prefix, dir=parent)
    raise OSError(
        f"no folder for temporary files with a path of at most {LONGEST - len(prefix) - 9} bytes can be written "
        f"(TMPDIR: {usual}; also tried {', '.join(_SHORT)}): sockets have to lie in one; set TMPDIR to a short path"
    )
