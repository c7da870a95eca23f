"""Whether nodes reach each other on a port, and whether their clocks agree: every node answers, and asks every other."""

import socket
import socketserver
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

_RETRY_S = 0.3
_LINGER_S = 1.0
_AT_A_TIME = 32


class Answering:
    """Answers on `port` of every address of this machine with the node's name and its clock, until closed. A context manager.

    Raises OSError when the port is taken.
    """

    def __init__(self, node: str, port: int) -> None:
        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                self.request.sendall(f"{node} {time.time():.6f}\n".encode())

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True

        self._server = Server(("0.0.0.0", port), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True).start()

    def __enter__(self) -> "Answering":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()


def reach_all(addresses: Mapping[str, str], own: str, port: int, timeout_s: float) -> tuple[dict[str, str | None], dict[str, float]]:
    """(by other node, why it was not reached or None; by node, seconds its clock is ahead of this one's, this one's 0 included).

    A node that does not answer yet is asked again until `timeout_s` have passed. To be called while this node answers; it goes
    on answering for a moment after all were reached, since others may still be about to ask.
    """
    deadline = time.monotonic() + timeout_s
    peers = [node for node in addresses if node != own]
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        answers = list(pool.map(lambda peer: _ask(peer, addresses[peer], port, deadline), peers))
    reached = {peer: why for peer, (why, _) in zip(peers, answers, strict=True)}
    clock = {own: 0.0} | {peer: ahead for peer, (why, ahead) in zip(peers, answers, strict=True) if why is None}
    if peers:
        time.sleep(_LINGER_S)
    return reached, clock


def _ask(peer: str, address: str, port: int, deadline: float) -> tuple[str | None, float]:
    """(None, seconds its clock is ahead), or (why it was not reached, 0)."""
    why = f"port {port} did not answer"
    while time.monotonic() < deadline:
        try:
            sent = time.time()
            with socket.create_connection((address, port), timeout=max(0.1, min(5.0, deadline - time.monotonic()))) as connection:
                name, _, clock = connection.makefile().readline().strip().partition(" ")
            if name != peer:
                return f"port {port} was answered by {name or 'something else'}: its address leads to another machine", 0.0
            return None, float(clock) - (sent + time.time()) / 2
        except OSError as error:
            why = f"port {port}: {error.strerror or error}"
        time.sleep(_RETRY_S)
    return why, 0.0
