"""A server on loopback that says what a test tells it to, and remembers what it was asked."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, Any]
"""(status, what is sent as JSON; bytes as they are)."""


@dataclass
class Asked:
    """Requests so far, and how many were under way at one time at most."""

    url: str = ""
    bodies: list[Any] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    under_way: int = 0
    most: int = 0


@contextmanager
def serving(reply: Callable[[Any, int], Reply], takes_s: float = 0.0) -> Iterator[Asked]:
    """Serves reply(the request's JSON, how many requests came before)."""
    asked, lock = Asked(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(asked.bodies)
                asked.bodies.append(body)
                asked.paths.append(self.path)
                asked.keys.append(self.headers.get("Authorization"))
                asked.under_way += 1
                asked.most = max(asked.most, asked.under_way)
            time.sleep(takes_s)
            status, content = reply(body, number)
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            with lock:
                asked.under_way -= 1
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *arguments: object) -> None:
            """Says nothing."""

    class Server(ThreadingHTTPServer):
        request_queue_size = 128  # not 5: dozens of requests come at one time

    server = Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    asked.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def said(text: str) -> Reply:
    """A chat's reply."""
    return 200, {"choices": [{"message": {"role": "assistant", "content": text}}]}
