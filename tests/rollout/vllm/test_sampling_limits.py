"""A server that does not answer is named, with the prompt, within its limit, however many requests wait for it."""

import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from megatron_entropic.rollout.types import Prompt, RolloutError
from megatron_entropic.rollout.vllm.client import ServerClient
from megatron_entropic.rollout.vllm.sampling import Sampled, SamplingRequest, sample

LIMIT_S = 2.0
LATE_S = 3.0
"""How much later a busy machine may raise. When every request held up the others for a second, 64 took a minute."""


class Elsewhere(ServerClient):
    """A server of another process, as far as is known alive, or dead with this exit code."""

    code: int | None = None

    def exit_code(self) -> int | None:
        return self.code

    def location(self) -> str:
        return "pid 1"


@contextmanager
def listening(trickle: bool) -> Iterator[str]:
    """The address of a server that takes connections and never answers, or sends its answer's head byte by byte, without end."""
    ended = threading.Event()

    def serve(connection: socket.socket) -> None:
        with connection:
            connection.sendall(b"HTTP/1.1 200 OK\r\nx: ")
            while not ended.wait(0.2):
                connection.sendall(b"x")

    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        connections: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    connections.append(listener.accept()[0])
                except OSError:
                    return
                if trickle:
                    threading.Thread(target=serve, args=(connections[-1],), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            ended.set()
            listener.shutdown(socket.SHUT_RDWR)
            for connection in connections:
                connection.close()


def ask(servers: Sequence[ServerClient], prompts: int) -> tuple[str, float]:
    """The error, and the seconds until it came."""
    asked = [Prompt(index, "", (5, 6)) for index in range(prompts)]
    start = time.monotonic()

    def accept(prompt: Prompt, server: ServerClient, samples: Sequence[Sampled]) -> Any:
        raise AssertionError("nobody answered")

    with pytest.raises(RolloutError) as raised:
        sample(servers, asked, SamplingRequest(0, 1, 1.0, 4, LIMIT_S, (1,)), accept)
    return str(raised.value), time.monotonic() - start


@pytest.mark.parametrize("trickle", [False, True])
def test_a_hung_server_is_named_within_the_limit_at_any_number_of_requests(tmp_path: Path, trickle: bool) -> None:
    with listening(trickle) as url:
        servers = [Elsewhere(index, url, "k", tmp_path / "log") for index in range(2)]
        message, seconds = ask(servers, 128)
    assert LIMIT_S <= seconds < LIMIT_S + LATE_S
    assert message.startswith("rollout server ")
    assert "did not answer a request for prompt " in message
    assert "within 2 s (rollout.request_timeout_s)" in message


def test_a_refused_connection_waits_a_moment_for_the_death_to_be_known_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    message, seconds = ask([Elsewhere(0, url, "k", tmp_path / "log")], 64)
    assert "did not answer a request for prompt" in message
    assert "ConnectError" in message
    assert seconds < LATE_S
