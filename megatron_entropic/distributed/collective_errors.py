"""Classification of torch's errors of a collective: another rank is gone, or does not come."""

_GONE = ("connection closed by peer", "connection reset by peer", "broken pipe", "remote process exited", "socket closed")
_LATE = ("timed out waiting", "timed out after", "watchdog caught collective operation timeout")
_BACKENDS = ("gloo", "nccl", "c10d", "store")


def peer_is_gone(error: RuntimeError) -> bool:
    """Whether a collective failed because another rank ended, which says why itself."""
    return _mentions(error, _GONE)


def peer_is_late(error: RuntimeError) -> bool:
    """Whether a collective failed because another rank did not come to it in time."""
    return _mentions(error, _LATE)


def _mentions(error: RuntimeError, phrases: tuple[str, ...]) -> bool:
    text = f"{type(error).__name__} {error}".lower()
    return any(backend in text for backend in _BACKENDS) and any(phrase in text for phrase in phrases)
