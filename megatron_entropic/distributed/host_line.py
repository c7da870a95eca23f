"""A line between rank 0 and every other rank on which they wait for each other, for as long as it takes.

A collective has a time limit, so that a rank that hangs in it ends the run; work that only one rank does (generation, starting
servers, reading, hashing) may take any time, and must not count against that limit. Here a rank waits while the other shows signs
of life: every process sends one byte again and again, whatever its main thread is busy with. Ranks that end, freeze or lose their
node are told apart from those that are slow.

Frames: b"." is a sign of life; any other byte begins a frame and is followed by a length (uint32, big-endian) and a payload.
"""

import atexit
import contextlib
import os
import secrets
import select
import socket
import struct
import threading
import time
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d

from megatron_entropic.errors import ReportedError

SIGNS_PER_LIMIT = 20
"""Signs of life within the time after which a silent rank counts as lost."""
_LONGEST_SIGN_S = 10.0
_KEY = "megatron_entropic/host_line"
_HEADER = struct.Struct("!cI")
_SIGN = b"."
_HELLO = b"H"
_GOODBYE_S = 5.0


class PeerEndedError(Exception):
    """Another rank ended, and reports why itself; this rank only stops with it."""


class RankZeroError(PeerEndedError):
    """Rank 0 failed and reports why itself; this rank only stops with it."""


class PeerSilentError(ReportedError, RuntimeError):
    """Another rank is frozen, or its node is gone: it gave no sign of life for the whole limit."""


class Peer:
    """The connection with one other rank; `location` says where it runs."""

    def __init__(self, rank: int, connection: socket.socket, location: str = "") -> None:
        self.rank = rank
        self.location = location
        self.connection = connection
        self._sending = threading.Lock()
        self._unread = b""

    def __str__(self) -> str:
        return f"rank {self.rank} ({self.location})"

    def send(self, kind: bytes, payload: bytes = b"") -> None:
        """Sends one frame. One that has ended is found out when it is waited for."""
        with self._sending, contextlib.suppress(OSError):
            self.connection.sendall(_HEADER.pack(kind, len(payload)) + payload)

    def sign(self) -> None:
        """Sends a sign of life, unless the other end has left thousands unread."""
        with self._sending, contextlib.suppress(OSError):
            self.connection.send(_SIGN, socket.MSG_DONTWAIT)

    def read(self) -> None:
        """Takes what has come. Raises EOFError when the other end is gone."""
        try:
            arrived = self.connection.recv(2**16)
        except OSError as error:
            raise EOFError(str(error)) from error
        if not arrived:
            raise EOFError("connection closed")
        self._unread += arrived

    def frame(self) -> tuple[bytes, bytes] | None:
        """The next whole frame that has been read, (kind, payload), without signs of life."""
        self._unread = self._unread.lstrip(_SIGN)
        if len(self._unread) < _HEADER.size:
            return None
        kind, length = _HEADER.unpack_from(self._unread)
        end = _HEADER.size + length
        if len(self._unread) < end:
            return None
        payload, self._unread = self._unread[_HEADER.size : end], self._unread[end:]
        return kind, payload


class HostLine:
    """Frames between rank 0 and each other rank; no frames between the others. Waits end with the peer, never with the clock.

    `limit_s` bounds how long a peer may give no sign of life at all. To be made on every rank together, in a process group.
    """

    def __init__(self, rank: int, world_size: int, store: Any, limit_s: float) -> None:
        self.rank = rank
        self.limit_s = limit_s
        self._tick_s = limit_s / SIGNS_PER_LIMIT
        found = _accept(world_size, store, limit_s) if rank == 0 else [_connect(rank, store, limit_s)]
        self.peers = {peer.rank: peer for peer in found}
        self._closed = threading.Event()
        os.register_at_fork(after_in_child=self._leave_to_parent)
        threading.Thread(target=self._show_life, name="signs of life", daemon=True).start()

    def send(self, kind: bytes, payload: bytes = b"") -> None:
        """Sends a frame to every peer."""
        for peer in self.peers.values():
            peer.send(kind, payload)

    def receive(self, doing: str) -> dict[int, tuple[bytes, bytes]]:
        """The next frame of every peer, (kind, payload) by rank; waits for them as long as they live.

        Raises RankZeroError or PeerEndedError for a peer that ended, PeerSilentError for one that is silent for `limit_s`; both
        name it and say what it was waited for, `doing`.
        """
        frames: dict[int, tuple[bytes, bytes]] = {}
        silent = dict.fromkeys(self.peers, 0)
        ticked = time.monotonic()
        while True:
            for peer in self.peers.values():
                if peer.rank not in frames and (frame := peer.frame()) is not None:
                    frames[peer.rank] = frame
            waiting = [peer for peer in self.peers.values() if peer.rank not in frames]
            if not waiting:
                return frames
            for peer in _readable(waiting, self._tick_s):
                silent[peer.rank] = 0
                self._read(peer, doing)
            # By ticks, not by the clock: a process that was itself suspended has missed one, not the whole limit.
            if time.monotonic() - ticked >= self._tick_s:
                ticked = time.monotonic()
                for peer in waiting:
                    silent[peer.rank] += 1
                    self._check(peer, silent[peer.rank], doing)

    def _read(self, peer: Peer, doing: str) -> None:
        try:
            peer.read()
        except EOFError as error:
            kind = PeerEndedError if peer.rank else RankZeroError
            raise kind(f"{peer} ended while this rank waited for {doing}") from error

    def _check(self, peer: Peer, silent_ticks: int, doing: str) -> None:
        if silent_ticks > SIGNS_PER_LIMIT:
            raise PeerSilentError(
                f"{peer} has given no sign of life for {self.limit_s:g} s (parallel.timeout_s) while rank {self.rank} waited for "
                f"{doing}: it is frozen, or its node is gone"
            )

    def _show_life(self) -> None:
        while not self._closed.wait(min(self._tick_s, _LONGEST_SIGN_S)):
            for peer in self.peers.values():
                peer.sign()

    def _leave_to_parent(self) -> None:
        """A forked child must not keep the connection open when this process has ended."""
        for peer in self.peers.values():
            peer.connection.close()

    def close(self) -> None:
        """Ends the line, on rank 0 once the peers have closed it or after a few seconds; safe to call twice."""
        if self._closed.is_set():
            return
        self._closed.set()
        deadline = time.monotonic() + _GOODBYE_S
        # What is unread when a connection is closed makes the kernel take back what was sent, and rank 0 has the last word.
        open_peers = [] if self.rank else list(self.peers.values())
        for peer in open_peers:
            with contextlib.suppress(OSError):
                peer.connection.shutdown(socket.SHUT_WR)
        while open_peers and time.monotonic() < deadline:
            for peer in _readable(open_peers, 0.1):
                try:
                    peer.read()
                except EOFError:
                    open_peers.remove(peer)
        for peer in self.peers.values():
            peer.connection.close()


def _readable(peers: Iterable[Peer], timeout_s: float) -> list[Peer]:
    by_descriptor = {peer.connection.fileno(): peer for peer in peers}
    poll = select.poll()
    for descriptor in by_descriptor:
        poll.register(descriptor, select.POLLIN)
    return [by_descriptor[descriptor] for descriptor, _ in poll.poll(timeout_s * 1000)]


def _accept(world_size: int, store: Any, limit_s: float) -> list[Peer]:
    """Rank 0's end: a connection of every other rank. Only who knows the key is let in."""
    host = os.environ.get("MASTER_ADDR", "127.0.0.1")
    key = secrets.token_hex(16)
    peers: dict[int, Peer] = {}
    deadline = time.monotonic() + limit_s
    with _listener(host) as listener:
        store.set(_KEY, f"{listener.getsockname()[1]} {key} {_own_place()}")
        while len(peers) < world_size - 1:
            listener.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                connection, _ = listener.accept()
            except TimeoutError as error:
                missing = sorted(set(range(1, world_size)) - set(peers))
                raise PeerSilentError(
                    f"ranks {missing} did not connect to rank 0 within {limit_s:g} s (parallel.timeout_s) of joining the process group"
                ) from error
            if (peer := _greeted(connection, key)) is not None:
                peers[peer.rank] = peer
    return [peers[rank] for rank in sorted(peers)]


def _listener(host: str) -> socket.socket:
    """A listening socket on a free port: of loopback where the ranks meet there, else of every address, as the group's store is."""
    address = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0]
    if host == "localhost" or str(address) in ("127.0.0.1", "::1"):
        family = socket.AF_INET6 if ":" in str(address) else socket.AF_INET
        return socket.create_server((str(address), 0), family=family, backlog=1024)
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
    return socket.create_server(("", 0), backlog=1024)


def _greeted(connection: socket.socket, key: str) -> Peer | None:
    """The peer that said hello with the key; None, its connection closed, for a stranger."""
    connection.settimeout(_GOODBYE_S)
    peer = Peer(-1, connection)
    with contextlib.suppress(EOFError, ValueError):
        while (frame := peer.frame()) is None and len(peer._unread) < 2**12:
            peer.read()
        if frame is not None and frame[0] == _HELLO:
            said, rank, location = frame[1].decode().split(" ", 2)
            if secrets.compare_digest(said, key):
                peer.rank, peer.location = int(rank), location
                connection.settimeout(None)
                return peer
    connection.close()
    return None


def _connect(rank: int, store: Any, limit_s: float) -> Peer:
    port, key, location = store.get(_KEY).decode().split(" ", 2)
    host = os.environ.get("MASTER_ADDR", "127.0.0.1")
    try:
        connection = socket.create_connection((host, int(port)), timeout=limit_s)
    except OSError as error:
        raise PeerSilentError(f"rank {rank} cannot connect to rank 0 ({location}) at {host} port {port}: {error}") from error
    connection.settimeout(None)
    peer = Peer(0, connection, location)
    peer.send(_HELLO, f"{key} {rank} {_own_place()}".encode())
    return peer


def _own_place() -> str:
    return f"pid {os.getpid()} on {socket.gethostname()}"


class _Opened:
    """This process's line, and the store of the process group that it belongs to."""

    line: HostLine | None = None
    store: Any = None


def host_line() -> HostLine | None:
    """The line of the default process group, opened by its first use on all ranks together; None where there is one rank only.

    The group's time limit is that of the signs of life.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return None
    store: Any = distributed_c10d._get_default_store()
    if _Opened.line is None or _Opened.store is not store:
        limit: timedelta = store.timeout
        _Opened.line = HostLine(dist.get_rank(), dist.get_world_size(), store, limit.total_seconds())
        _Opened.store = store
        atexit.register(close_host_line)
    return _Opened.line


def close_host_line() -> None:
    """Ends this process's line, if it has one; what was sent arrives. Also called when the process ends."""
    if _Opened.line is not None:
        _Opened.line.close()
        _Opened.line = _Opened.store = None
