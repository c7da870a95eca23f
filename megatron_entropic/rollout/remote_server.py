"""Servers that another process owns, such as `megatron-entropic serve` on another node, found through a folder both can read.

    FOLDER/server-2.json     where server 2 is and its key; appears when its process was started
    FOLDER/server-2.exit     its exit code; appears when it ended before its owner

The folder holds keys, so it is its user's alone. Keys and code travel no other way than through it.
"""

import json
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_entropic.config import RolloutConfig
from megatron_entropic.rollout.server_client import POLL_S, ServerClient
from megatron_entropic.rollout.types import RolloutError
from megatron_entropic.whole_file import write_whole

FLEET_VARIABLE = "MEGATRON_ENTROPIC_FLEET_DIR"


class RemoteServer(ServerClient):
    """Server `index` as announced in `folder`. Its owner ends it; `close` only ends this process's connection."""

    def __init__(self, folder: Path, index: int) -> None:
        path = _announcement(folder, index)
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            super().__init__(index, str(found["url"]), str(found["key"]), Path(str(found["log"])))
            self._place = f"pid {int(found['pid'])} on {found['node']}"
        except (ValueError, KeyError, TypeError) as error:
            raise RolloutError(f"{path} is no announcement of a rollout server ({type(error).__name__}: {error})") from error
        self._exit = _end(folder, index)

    def place(self) -> str:
        return self._place

    def exit_code(self) -> int | None:
        return int(self._exit.read_text()) if self._exit.exists() else None


def fleet_folder(cfg: RolloutConfig) -> Path | None:
    """Where the run's servers are announced: rollout.fleet_dir, else what a cluster job says for this start of a run; else None.

    Not a setting there, because a run that is resumed elsewhere must not look for servers that are no more.
    """
    given = cfg.fleet_dir or os.environ.get(FLEET_VARIABLE)
    return Path(given) if given else None


def open_folder(folder: Path) -> Path:
    """Makes the folder, for this user alone, unless it is there; returns it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def announce(folder: Path, server: ServerClient, pid: int | None) -> None:
    """Tells the readers of `folder` where `server` is."""
    _end(folder, server.index).unlink(missing_ok=True)
    content = {"url": server.url, "key": server.key, "pid": pid, "node": socket.gethostname(), "log": str(server.log_path.absolute())}
    write_whole(_announcement(folder, server.index), (json.dumps(content) + "\n").encode())


def announce_end(folder: Path, server: ServerClient, code: int) -> None:
    """Tells the readers of `folder` that `server` ended by itself, with this exit code."""
    write_whole(_end(folder, server.index), f"{code}\n".encode())


def find_servers(folder: Path, count: int, timeout_s: float) -> Sequence[RemoteServer]:
    """Servers 0 ... count - 1 once all are announced. Raises RolloutError naming those that were not after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while missing := [index for index in range(count) if not _announcement(folder, index).exists()]:
        if time.monotonic() > deadline:
            raise RolloutError(
                f"rollout servers {', '.join(map(str, missing))} of {count} were not announced in {folder} within {timeout_s:g} s "
                "(rollout.startup_timeout_s); `megatron-entropic serve` with this folder starts and announces them"
            )
        time.sleep(POLL_S)
    return [RemoteServer(folder, index) for index in range(count)]


def _announcement(folder: Path, index: int) -> Path:
    return folder / f"server-{index}.json"


def _end(folder: Path, index: int) -> Path:
    return folder / f"server-{index}.exit"
