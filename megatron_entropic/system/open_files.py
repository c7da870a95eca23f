"""The limit on open files (`ulimit -n`): raised as far as it may be, and refused before anything starts where it is too low."""

import resource

from megatron_entropic.errors import ReportedError

_PROCESS = 128
"""Open files of one rank by itself: libraries, logs, checkpoints being written."""
_PER_RANK = 16
"""Connections to each other rank, over all process groups."""
_SERVERS = 64
"""Connections to rollout servers (sampling.MAX_CONCURRENT_REQUESTS)."""


class OpenFilesError(ReportedError, OSError):
    """Too few files may be open at one time for the run."""


def allow_open_files(world_size: int, *, servers: bool) -> None:
    """Raises this process's limit, and so that of what it starts, to what a rank or a server needs.

    Raises OpenFilesError naming both numbers when it may not be raised so far.
    """
    needed = _PROCESS + _PER_RANK * world_size + (_SERVERS if servers else 0)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed and (hard == resource.RLIM_INFINITY or hard >= needed):
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    elif soft != resource.RLIM_INFINITY and soft < needed:
        raise OpenFilesError(
            f"only {hard} files may be open at one time (ulimit -n); this run needs {needed}: raise the limit of the shell, the "
            "container or the job (ulimit -Hn shows how far it may go)"
        )
