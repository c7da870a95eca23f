"""One owner of a folder: a lock that ends with its holder, a lease for file systems and machines where locks do not tell, and a
token that fences off an owner that was given up for dead and still writes.

    FOLDER/.owner.lock     held by flock(2) while the owner, or a process it handed the lock to, lives
    FOLDER/.owner.json     who owns it (or did last), its generation and token; touched every BEAT_S as a sign of life

On one machine the lock decides, at once. From another machine it may not be seen (Lustre mounted with localflock, NFS without a
lock daemon), so an owner elsewhere also counts as alive until it gave no sign of life for LEASE_S, by the file server's clock.
A requeued SLURM job takes over from its earlier start without waiting: SLURM has declared that one dead.
"""

import errno
import fcntl
import json
import logging
import os
import secrets
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from megatron_entropic.errors import ReportedError
from megatron_entropic.system.atomic_files import write_atomically
from megatron_entropic.system.process_identity import ProcessIdentity

logger = logging.getLogger(__name__)

BEAT_S = 10.0
LEASE_S = 60.0
"""Time that an owner on another machine counts as alive after its last heartbeat."""
UNWIND_S = 30.0
"""Time that processes left behind by a killed owner may hold its lock while they end."""
_SETTLE_S = 1.0
"""Time after which two that take a folder at once see each other, where there are no locks."""
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)
TOKEN_VARIABLE = "MEGATRON_ENTROPIC_OWNER"
"""Environment variable by which ranks know under which token their run's folder is owned."""


class FolderOwnedError(ReportedError, RuntimeError):
    """The folder belongs to another process; the message names its host, process and since when."""


@dataclass(frozen=True)
class Owner:
    """Content of .owner.json. `held` is false once the owner gave the folder back."""

    process: ProcessIdentity
    generation: int
    token: str
    held: bool


def read_owner(folder: Path, name: str = "owner") -> Owner | None:
    """The present or last owner of `folder`; None when there was none yet. Raises FolderOwnedError for a file that is none."""
    path = folder / f".{name}.json"
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        process = ProcessIdentity.from_fields(fields)
        return Owner(process, int(fields["generation"]), str(fields["token"]), bool(fields["held"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise FolderOwnedError(f"{path} does not say who owns the folder ({error}); remove it when nobody does") from error


class FolderLock:
    """Ownership of `folder` by this process, from `acquire` to `release` or the process's end. A context manager.

    `what` is how errors call the folder's use. Several locks of different `name` may be held on one folder.
    """

    def __init__(self, folder: Path, what: str, name: str = "owner") -> None:
        self.folder = folder
        self.what = what
        self.name = name
        self.token = ""
        self.descriptor: int | None = None
        """Open file that carries the lock: a process that inherits it holds the lock too."""
        self._ended = threading.Event()

    @property
    def files(self) -> tuple[Path, Path]:
        """The lock and the owner's record."""
        return self.folder / f".{self.name}.lock", self.folder / f".{self.name}.json"

    def __enter__(self) -> "FolderLock":
        self.acquire()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()

    def acquire(self) -> None:
        """Makes this process the owner. Makes the folder when missing.

        Waits, at most LEASE_S, for an owner on another machine that left its lock but may only have been killed. Raises
        FolderOwnedError naming a living owner, OSError naming the path when the folder cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self.descriptor = os.open(self.files[0], os.O_RDWR | os.O_CREAT, 0o644)
        try:
            locked = _lock(self.descriptor)
            before = read_owner(self.folder, self.name)
            self._check_free(before, locked, self.descriptor)
            self._take((before.generation if before else 0) + 1)
            if not locked:
                time.sleep(_SETTLE_S)
                Fence(self.folder, self.token, self.name).check()
        except BaseException:
            self._close()
            raise
        threading.Thread(target=self._beat, name=f"{self.name} lease", daemon=True).start()

    def release(self) -> None:
        """Gives the folder back; safe to call twice. What happened to it meanwhile does not matter."""
        if self.descriptor is None:
            return
        self._ended.set()
        try:
            owner = read_owner(self.folder, self.name)
            if owner is not None and owner.token == self.token:
                self._write(owner.process, owner.generation, held=False)
        except (OSError, FolderOwnedError) as error:  # a full or vanished disk: the lock itself ends with the process
            logger.debug("%s: %s", self.files[1], error)
        self._close()

    def _check_free(self, owner: Owner | None, locked: bool | None, descriptor: int) -> None:
        """Returns once the folder may be taken from its last owner; raises FolderOwnedError if not. `locked`: see _lock."""
        if owner is None or not owner.held:
            if locked is False:
                raise FolderOwnedError(f"{self.folder}: another process holds {self.files[0]}: {self.what} is in use")
            return
        alive = owner.process.is_alive()
        if alive is not True and owner.process.is_earlier_start_of_this_job():
            logger.info("taking %s over from an earlier start of this job: %s", self.folder, owner.process)
        elif locked is False and alive is False:
            self._wait_for_processes(owner, descriptor)
        elif locked is False or alive:
            raise self._refusal(owner)
        elif alive is None and not (locked and owner.process.same_kernel):
            self._wait_for_lease(owner)

    def _wait_for_processes(self, owner: Owner, descriptor: int) -> None:
        """Returns once the processes of an owner that was killed have ended. Raises FolderOwnedError after UNWIND_S."""
        logger.info("%s: waiting for what %s left running when it was killed", self.folder, owner.process)
        deadline = time.monotonic() + UNWIND_S
        while not _lock(descriptor):
            if time.monotonic() > deadline:
                raise self._refusal(owner)
            time.sleep(0.1)

    def _wait_for_lease(self, owner: Owner) -> None:
        """Returns once the owner has given no sign of life for LEASE_S. Raises FolderOwnedError as soon as it gives one."""
        last = self.files[1].stat().st_mtime
        told = False
        while (left := LEASE_S - silence_s(self.files[1], self.files[0])) > 0:
            if self.files[1].stat().st_mtime != last:
                raise self._refusal(owner)
            if not told:
                logger.info("%s: %s may be gone; %s is taken over in %.0f s if so", self.folder, owner.process, self.what, left)
                told = True
            time.sleep(min(1.0, left))

    def _refusal(self, owner: Owner) -> FolderOwnedError:
        here = owner.process.is_alive()
        gone = "; a process that it started still holds the lock" if here is False else ""
        late = "" if here is not None else f"; should that machine be dead, it is free {LEASE_S:.0f} s after its last sign of life"
        return FolderOwnedError(f"{self.folder}: {self.what} is in use by {owner.process}{gone}{late}")

    def _take(self, generation: int) -> None:
        self.token = f"{generation}-{secrets.token_hex(8)}"
        self._write(ProcessIdentity.of_this_process(), generation, held=True)

    def _write(self, process: ProcessIdentity, generation: int, *, held: bool) -> None:
        fields = {**process.fields(), "generation": generation, "token": self.token, "held": held}
        write_atomically(self.files[1], (json.dumps(fields) + "\n").encode())

    def _beat(self) -> None:
        fence = Fence(self.folder, self.token, self.name)
        while not self._ended.wait(BEAT_S):
            try:
                fence.check()
                os.utime(self.files[1])
            except FolderOwnedError as error:
                logger.error("%s", error)
                return
            except OSError as error:  # of a file server that is away for a while
                logger.debug("%s: %s", self.files[1], error)

    def _close(self) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


class Fence:
    """Stands before whatever is published in an owned folder: only the present owner gets through. An empty token is no fence."""

    def __init__(self, folder: Path, token: str, name: str = "owner") -> None:
        self.folder = folder
        self.token = token
        self.name = name

    @classmethod
    def of_this_run(cls, folder: Path) -> "Fence":
        """The fence of a rank, with the token that the run's owner gave it."""
        return cls(folder, os.environ.get(TOKEN_VARIABLE, ""))

    @property
    def generation(self) -> str:
        """Number of owners of the folder up to this one; "0" without a fence."""
        return self.token.partition("-")[0] or "0"

    def check(self) -> None:
        """Raises FolderOwnedError naming whoever has taken the folder over since."""
        if not self.token:
            return
        owner = read_owner(self.folder, self.name)
        if owner is None or owner.token != self.token:
            by = f"was taken over by {owner.process}" if owner else "was removed or replaced"
            raise FolderOwnedError(f"{self.folder} {by}: this process writes nothing more there")

    def is_open(self) -> bool:
        """Whether this process's owner still is the owner."""
        try:
            self.check()
        except FolderOwnedError:
            return False
        return True


def silence_s(sign: Path, probe: Path) -> float:
    """Seconds since the file `sign` was last touched, by the file server's clock: `probe`, another file there, is touched for it."""
    os.utime(probe)
    return probe.stat().st_mtime - sign.stat().st_mtime


def _lock(descriptor: int) -> bool | None:
    """Whether the lock was got; None where the file system has none."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True
