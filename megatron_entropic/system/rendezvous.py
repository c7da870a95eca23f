"""Rendezvous of the ranks of a run: a store that rank 0 hosts on a port that is bound, not guessed.

A launcher of this package binds a port and hands it to rank 0 as an open socket. Under srun rank 0 binds one that is free and
writes it to RUN_DIR/.meeting.json, under the number of its step. torchrun hosts a store itself. A MASTER_PORT that is set is
taken as it is: when another program has it, that is an error, and so is a store of other ranks behind it.
"""

import json
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from megatron_entropic.errors import ReportedError
from megatron_entropic.system.atomic_files import write_atomically

LISTENER_VARIABLE = "MEGATRON_ENTROPIC_STORE_FD"
"""Environment variable of rank 0: number of the open socket that listens on MASTER_PORT."""
MEETING = ".meeting.json"
_STEP = ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_STEP_ID")
_GREETING = "megatron_entropic/ranks"
BACKLOG = 4096
_POLL_S = 0.2


class RendezvousError(ReportedError, RuntimeError):
    """The rendezvous failed; the message names the address and what is in the way."""


def listen(host: str, port: int = 0) -> socket.socket:
    """A socket that listens on `host` (all addresses of this machine when empty), on a free port unless one is given."""
    if not host and socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, backlog=BACKLOG, dualstack_ipv6=True)
    return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=BACKLOG)


def reserve(host: str) -> socket.socket:
    """A socket that keeps a free port of `host` for a library of this process that binds it by itself, as a server (SO_REUSEADDR)."""
    reserved = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind((host, 0))
    return reserved


def open_store(rank: int, world_size: int, timeout_s: float, folder: Path | None = None) -> Any:
    """The torch Store of the rendezvous; None where torch.distributed finds it by itself (torchrun).

    `folder`, which all ranks share, is needed where no MASTER_PORT is set. Raises RendezvousError naming the port that
    another program has, or whose store is not this run's, and whoever did not come within `timeout_s`.
    """
    from torch.distributed import HashStore, TCPStore  # type: ignore[attr-defined]  # exported at run time

    if world_size == 1:
        return HashStore()
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return None
    if "MASTER_ADDR" not in os.environ:
        raise RendezvousError(f"WORLD_SIZE={world_size} needs MASTER_ADDR and MASTER_PORT in the environment; torchrun sets them")
    host, deadline = os.environ["MASTER_ADDR"], time.monotonic() + timeout_s
    listener = _listener(folder) if rank == 0 else None
    port = listener.getsockname()[1] if listener else _port(folder, deadline, timeout_s)
    served: dict[str, Any] = {} if listener is None else {"master_listen_fd": listener.detach()}
    try:
        left = timedelta(seconds=max(1.0, deadline - time.monotonic()))
        store = TCPStore(host, port, world_size, is_master=rank == 0, timeout=left, wait_for_workers=False, **served)
        _greet(store, rank, f"{host}:{port}")
        store.set_timeout(timedelta(seconds=timeout_s))
    except RendezvousError:
        raise
    except RuntimeError as error:  # torch's DistError
        raise RendezvousError(f"rank {rank}: no rendezvous with the others at {host}:{port} within {timeout_s:g} s: {error}") from error
    return store


def _listener(folder: Path | None) -> socket.socket:
    """Rank 0's socket: inherited, on MASTER_PORT, or on a free port that is written to the folder."""
    inherited = os.environ.pop(LISTENER_VARIABLE, None)
    if inherited is not None:
        return socket.socket(fileno=int(inherited))
    given = os.environ.get("MASTER_PORT")
    try:
        listener = listen("", int(given or 0))
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise RendezvousError(
            f"MASTER_PORT={given} cannot be used on {socket.gethostname()}: {reason}; another program or another step of this job "
            "has it: unset it (the rendezvous is then at a free port) or set another one"
        ) from error
    if given is None:
        write_atomically(
            _meeting(folder), (json.dumps({"step": job_step(os.environ), "port": listener.getsockname()[1]}) + "\n").encode()
        )
    return listener


def _port(folder: Path | None, deadline: float, timeout_s: float) -> int:
    """The port of rank 0's store, for the other ranks; waits until it is known."""
    if "MASTER_PORT" in os.environ:
        return int(os.environ["MASTER_PORT"])
    path, step = _meeting(folder), job_step(os.environ)
    while time.monotonic() < deadline:
        with suppress(OSError, ValueError, KeyError):  # not there yet, or that of an earlier start
            fields = json.loads(path.read_text(encoding="utf-8"))
            if fields["step"] == step:
                return int(fields["port"])
        time.sleep(_POLL_S)
    raise RendezvousError(f"rank 0 wrote no rendezvous to {path} within {timeout_s:g} s (parallel.timeout_s): its own log says why")


def _meeting(folder: Path | None) -> Path:
    if folder is None:
        raise RendezvousError("MASTER_PORT is not set: ranks on several machines need one; torchrun sets it")
    return folder / MEETING


def job_step(environ: Mapping[str, str]) -> str:
    """Names the step of a SLURM job that this process belongs to, and which start of the job it is; equal on all ranks."""
    return ".".join(environ.get(name) or "0" for name in _STEP)


def _greet(store: Any, rank: int, address: str) -> None:
    """Makes sure that this is the store of the same step. Raises RendezvousError, and what the store raises."""
    mine = job_step(os.environ)
    if rank == 0:
        store.set(_GREETING, mine)
    elif (found := store.get(_GREETING).decode()) != mine:
        raise RendezvousError(f"{address} is the rendezvous of step {found}, not of step {mine}: set another MASTER_PORT")
