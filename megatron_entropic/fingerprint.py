"""What a file holds, in short: its size and SHA-256 sum."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

_BLOCK = 1 << 20


@dataclass(frozen=True)
class Fingerprint:
    """Size in bytes and SHA-256 sum (hexadecimal) of a file."""

    size: int
    sha256: str


def fingerprint(path: Path) -> Fingerprint:
    """Reads all of `path`, a block at a time; other threads go on meanwhile."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            size += len(block)
    return Fingerprint(size, digest.hexdigest())
