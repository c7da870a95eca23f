"""Servers that another process owns, such as `megatron-entropic serve` on another node, found through a folder both can read.

    FOLDER/server-2.json     where server 2 is, its key, and the process that owns it, which touches the file every BEAT_S while it
                             lives and removes it at its end: an announcement without that is stale, and dropped
    FOLDER/server-2.exit     its exit code; appears when it ended before its owner
    FOLDER/.trainer.*        the one trainer that uses them (folder_lock.py)

The folder holds keys, so it is its user's alone. Keys and code travel no other way than through it.
"""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_entropic.config import RolloutConfig
from megatron_entropic.rollout.types import RolloutError
from megatron_entropic.rollout.vllm.client import POLL_S, ServerClient
from megatron_entropic.system.atomic_files import write_atomically
from megatron_entropic.system.folder_lock import LEASE_S, FolderLock, silence_s
from megatron_entropic.system.process_identity import ProcessIdentity

ENDED_LATELY_S = 600.0
FLEET_VARIABLE = "MEGATRON_ENTROPIC_FLEET_DIR"


class RemoteServer(ServerClient):
    """Server `index` as announced in `folder`. Its owner ends it; `close` only ends this process's connection."""

    def __init__(self, folder: Path, index: int) -> None:
        found = _read(folder, index)
        super().__init__(index, str(found["url"]), str(found["key"]), Path(str(found["log"])))
        self._place = f"pid {found['server_pid']} on {found['host']}"
        self._exit = _end(folder, index)

    def location(self) -> str:
        return self._place

    def exit_code(self) -> int | None:
        return int(self._exit.read_text()) if self._exit.exists() else None


def fleet_folder(cfg: RolloutConfig) -> Path | None:
    """Folder where the run's servers are announced: rollout.fleet_dir, else the cluster job's for this start of a run; else None.

    Not a setting there, because a run that is resumed elsewhere must not look for servers that are no more.
    """
    given = cfg.fleet_dir or os.environ.get(FLEET_VARIABLE)
    return Path(given) if given else None


def open_folder(folder: Path) -> Path:
    """Makes the folder, for this user alone, unless it is there; returns it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def trainer_lock(folder: Path) -> FolderLock:
    """The claim of the one trainer that may use the folder's servers; a second one is refused by name."""
    return FolderLock(open_folder(folder), "the fleet", name="trainer")


def check_unannounced(folder: Path, indices: Sequence[int]) -> None:
    """Raises RolloutError naming the process that has announced one of these servers and still lives."""
    for index in indices:
        if _announcement(folder, index).exists() and not _stale(folder, index):
            raise RolloutError(
                f"{_announcement(folder, index)}: rollout server {index} is announced there already, by {_owner(folder, index)}: give "
                f"every `megatron-entropic serve` of one folder its part (--share)"
            )


def announce(folder: Path, server: ServerClient, pid: int | None) -> None:
    """Tells the readers of `folder` where `server` is, whose process `pid` this process owns."""
    _end(folder, server.index).unlink(missing_ok=True)
    content = {
        **ProcessIdentity.of_this_process().fields(),
        "url": server.url,
        "key": server.key,
        "server_pid": pid,
        "log": str(server.log_path.absolute()),
    }
    write_atomically(_announcement(folder, server.index), (json.dumps(content) + "\n").encode())


def still_there(folder: Path, server: ServerClient) -> None:
    """Gives the sign of life of the server's owner. An announcement that was removed stays so."""
    path = _announcement(folder, server.index)
    if path.exists():
        os.utime(path)


def withdraw(folder: Path, server: ServerClient) -> None:
    """Removes the announcement of `server`, if it still is this one's. That of one that ended by itself stays, to be named."""
    path = _announcement(folder, server.index)
    if path.exists() and not _end(folder, server.index).exists() and _read(folder, server.index)["key"] == server.key:
        path.unlink(missing_ok=True)


def announce_end(folder: Path, server: ServerClient, code: int) -> None:
    """Tells the readers of `folder` that `server` ended by itself, with this exit code."""
    write_atomically(_end(folder, server.index), f"{code}\n".encode())


def find_servers(folder: Path, count: int, timeout_s: float) -> Sequence[RemoteServer]:
    """Servers 0 ... count - 1 once all are announced by living owners. Raises RolloutError naming the others after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while missing := [index for index in range(count) if not _is_announced(folder, index)]:
        if time.monotonic() > deadline:
            stale = "; ".join(text for index in missing if (text := _stale(folder, index)))
            raise RolloutError(
                f"rollout servers {', '.join(map(str, missing))} of {count} were not announced in {folder} within {timeout_s:g} s "
                "(rollout.startup_timeout_s); `megatron-entropic serve` with this folder starts and announces them"
                + (f" ({stale})" if stale else "")
            )
        time.sleep(POLL_S)
    return [RemoteServer(folder, index) for index in range(count)]


def _is_announced(folder: Path, index: int) -> bool:
    return _announcement(folder, index).exists() and (_ended_lately(folder, index) or not _stale(folder, index))


def _ended_lately(folder: Path, index: int) -> bool:
    """Whether the server ended by itself a short while ago: then its trainer is to say so, not to wait for another."""
    path = _end(folder, index)
    return path.exists() and silence_s(path, _probe(folder)) < ENDED_LATELY_S


def _stale(folder: Path, index: int) -> str:
    """The reason to drop a server's announcement; empty when its owner lives, or there is none."""
    path = _announcement(folder, index)
    if not path.exists():
        return ""
    owner = _owner(folder, index)
    alive = owner.is_alive()
    if alive is False:
        return f"{path.name} is stale: {owner} has ended"
    if alive is None and (silent := silence_s(path, _probe(folder))) > LEASE_S:
        return f"{path.name} is stale: {owner} gave no sign of life for {silent:.0f} s"
    return ""


def _probe(folder: Path) -> Path:
    path = folder / ".clock"
    path.touch()
    return path


def _owner(folder: Path, index: int) -> ProcessIdentity:
    return ProcessIdentity.from_fields(_read(folder, index))


def _read(folder: Path, index: int) -> dict[str, Any]:
    path = _announcement(folder, index)
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        ProcessIdentity.from_fields(found)
        if missing := {"url", "key", "log", "server_pid"} - found.keys():
            raise KeyError(*sorted(missing))
        return found
    except (ValueError, KeyError, TypeError) as error:
        raise RolloutError(f"{path} is no announcement of a rollout server ({type(error).__name__}: {error})") from error


def _announcement(folder: Path, index: int) -> Path:
    return folder / f"server-{index}.json"


def _end(folder: Path, index: int) -> Path:
    return folder / f"server-{index}.exit"
