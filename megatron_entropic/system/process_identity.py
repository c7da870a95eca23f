"""Identity of a process and its machine: enough to tell later, also from elsewhere, whether it still runs."""

import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ProcessIdentity:
    """A process, as it is written to files that others read. A process id alone names another process after a while."""

    host: str
    boot: str
    """The kernel's boot id: equal for all processes, in containers or not, of one machine since it was started."""
    pid_space: str
    """The namespace that `pid` counts in; processes in different ones cannot see each other."""
    pid: int
    started: int
    """Start of the process in clock ticks since boot: with `pid` and `boot` it names the process forever."""
    since: str
    """Time of writing, in UTC, for people."""
    job: str
    """SLURM's number of the job; empty outside one."""
    job_start: int
    """Start number of the job: 0, then 1 more after every requeue."""

    @classmethod
    def of_this_process(cls, environ: Mapping[str, str] = os.environ) -> "ProcessIdentity":
        """This process, now."""
        return cls(
            host=socket.gethostname(),
            boot=_boot_id(),
            pid_space=_pid_space(),
            pid=os.getpid(),
            started=_start_ticks(os.getpid()) or 0,
            since=datetime.now(UTC).isoformat(timespec="seconds"),
            job=environ.get("SLURM_JOB_ID", ""),
            job_start=int(environ.get("SLURM_RESTART_COUNT") or "0"),
        )

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> "ProcessIdentity":
        """Reads back `fields()`. Raises KeyError, TypeError or ValueError for what is none."""
        values: dict[str, Any] = {name: kind(fields[name]) for name, kind in cls.__annotations__.items()}
        return cls(**values)

    def fields(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @property
    def same_kernel(self) -> bool:
        """Whether it ran on this machine as it runs now (not: before a reboot)."""
        return bool(self.boot) and self.boot == _boot_id()

    def is_alive(self) -> bool | None:
        """Whether it still runs; None where that cannot be seen from here: on another machine, or in another namespace."""
        if not self.same_kernel:
            return False if self.boot and self.host == socket.gethostname() and _boot_id() else None
        if self.pid_space != _pid_space():
            return None
        return _start_ticks(self.pid) == self.started

    def is_earlier_start_of_this_job(self) -> bool:
        """Whether it belongs to the SLURM job that this process belongs to, before SLURM requeued it."""
        mine = ProcessIdentity.of_this_process()
        return bool(self.job) and self.job == mine.job and self.job_start < mine.job_start

    def __str__(self) -> str:
        job = f" (SLURM job {self.job})" if self.job else ""
        return f"pid {self.pid} on {self.host}{job}, since {self.since}"


def _start_ticks(pid: int) -> int | None:
    """Start of a living process in clock ticks since boot; None when there is none, or only a zombie of it."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _pid_space() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
