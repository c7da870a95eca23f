"""Files of one zstd frame with a checksum, written atomically: a truncated or damaged one cannot pass for a whole one."""

import os
from collections.abc import Iterable
from pathlib import Path

import zstandard

_LEVEL = 1  # log-probs do not compress, and at this level it takes half a core beside the update
_BUFFER_BYTES = 2**20


def write_frame(path: Path, size: int, pieces: Iterable[bytes | memoryview]) -> None:
    """Writes `pieces`, `size` bytes in all, to `path`, compressed; through a temporary file beside it. Raises OSError."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
            with compressor.stream_writer(file, size=size, write_size=_BUFFER_BYTES, closefd=False) as stream:
                for piece in pieces:
                    stream.write(piece)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def read_frame(path: Path) -> bytes:
    """The content of a file that is exactly one whole zstd frame. Raises ValueError when it is not."""
    try:
        return zstandard.ZstdDecompressor().decompress(path.read_bytes(), allow_extra_data=False)
    except (zstandard.ZstdError, MemoryError) as error:
        raise ValueError(f"{path}: truncated, damaged or overlong file ({error}); copy it again or record the step again") from error
