"""A real receiver of alerts, also one that behaves badly."""

import json
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any


class Receiver:
    """Answers POSTs on a port of loopback by `answers`, one after the other, then 200; `posted` holds what came. A context manager.

    An answer is a status, "hang" (nothing comes until the end of the block), "close" (the connection is closed) or "garbage".
    """

    def __init__(self, *answers: int | str) -> None:
        self.posted: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self._answers = list(answers)
        self._arrived = threading.Condition()
        self._end = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                answer = receiver._take(content, dict(self.headers))
                if answer == "hang":
                    receiver._end.wait(60)
                elif answer == "garbage":
                    self.wfile.write(b"\x00\xff no http at all\r\n\r\n")
                elif isinstance(answer, int):
                    self.send_response(answer)
                    self.send_header("Location", "http://127.0.0.1:9/elsewhere")
                    self.end_headers()
                if answer != 200:
                    self.connection.shutdown(socket.SHUT_RDWR)

            def log_message(self, format: str, *args: Any) -> None:
                """Silent."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign, assignment]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/services/T0/HIDDEN"

    def wait_for(self, enough: Callable[[list[dict[str, Any]]], bool]) -> None:
        """Waits until what came is enough."""
        with self._arrived:
            assert self._arrived.wait_for(lambda: enough(self.posted), 60), self.posted

    def _take(self, content: dict[str, Any], headers: dict[str, str]) -> int | str:
        with self._arrived:
            self.posted.append(content)
            self.headers.append(headers)
            self._arrived.notify_all()
            return self._answers.pop(0) if self._answers else 200

    def __enter__(self) -> "Receiver":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
