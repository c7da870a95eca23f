"""Lines that come through a descriptor."""

import os

_CHUNK = 1 << 16


class Lines:
    """Reads whole lines, without taking more from the descriptor than a line's own request-and-reply partner has sent."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._rest = b""

    def next(self) -> bytes | None:
        """The next line; None when there are no more."""
        parts = [self._rest]
        while b"\n" not in parts[-1]:
            chunk = os.read(self.descriptor, _CHUNK)
            if not chunk:
                return None
            parts.append(chunk)
        line, _, self._rest = b"".join(parts).partition(b"\n")
        return line
