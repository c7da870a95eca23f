"""The viewer's server: on 127.0.0.1 only, behind a random key in the address, GET alone, nothing from the network.

    GET /KEY/              the page; viewer.css, viewer.js beside it
    GET /KEY/api/run       name, progress of the index
    GET /KEY/api/search    results for the filters in the query
    GET /KEY/api/prompt    all samples of a prompt of a step

What rollouts say is untrusted: it travels as JSON and becomes text nodes; the page's policy (CSP) lets no script run but its own file.
"""

import json
import logging
import secrets
import sqlite3
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from megatron_entropic.observability.run_data import load_settings
from megatron_entropic.observability.viewer.index import Index
from megatron_entropic.observability.viewer.samples import Samples
from megatron_entropic.observability.viewer.search import Filters, matching_samples, other_steps, search

logger = logging.getLogger(__name__)

ADDRESS = "127.0.0.1"
REFRESH_S = 3.0
"""Time between two looks for steps recorded since."""
_FILES = {
    "": ("viewer.html", "text/html; charset=utf-8"),
    "viewer.css": ("viewer.css", "text/css; charset=utf-8"),
    "viewer.js": ("viewer.js", "text/javascript; charset=utf-8"),
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_LOCAL_NAMES = ("127.0.0.1", "localhost")


class Viewer:
    """Serves the run in `run_dir`, whose rollouts may be none yet. A context manager: leaving it ends the server and its threads.

    Raises FileNotFoundError when the folder is not a run's, OSError for a port that is taken.
    """

    def __init__(self, run_dir: Path, *, port: int = 0, index_file: Path | None = None, refresh_s: float = REFRESH_S) -> None:
        self.run_dir = run_dir
        settings = load_settings(run_dir)
        self.index = Index(run_dir / "rollouts", index_file)
        self.samples = Samples(run_dir, settings)
        self.key = secrets.token_urlsafe(18)
        self.refresh_s = refresh_s
        self.trouble: str | None = None
        self._ended = threading.Event()
        self._server = ThreadingHTTPServer((ADDRESS, port), self._handler())
        self._server.daemon_threads = True
        self._threads = [
            threading.Thread(target=self._server.serve_forever, args=(0.1,), name="viewer", daemon=True),
            threading.Thread(target=self._keep_fresh, name="viewer index", daemon=True),
        ]

    @property
    def url(self) -> str:
        """Address of the page, its key included."""
        return f"http://{ADDRESS}:{self._server.server_address[1]}/{self.key}/"

    def __enter__(self) -> "Viewer":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._server.shutdown()
        self._server.server_close()
        for thread in self._threads:
            thread.join()

    def _keep_fresh(self) -> None:
        while not self._ended.is_set():
            try:
                self.index.refresh(self._ended.is_set)
                self.trouble = None
            except (OSError, sqlite3.Error) as error:
                self.trouble = f"the index is not up to date: {error}"
                logger.warning("%s: %s", self.index.path, self.trouble)
            self._ended.wait(self.refresh_s)

    # -- answers --------------------------------------------------------------------------------------------------

    def run(self, asked: Mapping[str, str]) -> dict[str, Any]:
        """Name of the run and how far its index is."""
        progress = asdict(self.index.progress())
        return {"name": self.run_dir.resolve().name, "trouble": self.trouble, **progress}

    def search(self, asked: Mapping[str, str]) -> dict[str, Any]:
        """Results for the filters in `asked`."""
        return search(self.index, Filters.read(asked), asked.get("order") or "step", max(0, int(asked.get("page") or 0)))

    def prompt(self, asked: Mapping[str, str]) -> dict[str, Any]:
        """All samples of `prompt_index` of `step` (from 0), which of them fit the filters, and where else the prompt was drawn."""
        step, prompt_index = int(asked["step"]), int(asked["prompt_index"])
        same, places = other_steps(self.index, step, prompt_index)
        fitting = matching_samples(self.index, Filters.read(asked), step, prompt_index)
        return self.samples.of_prompt(step, prompt_index) | {"fitting": fitting, "same": same, "places": places}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        answers = {"api/run": self.run, "api/search": self.search, "api/prompt": self.prompt}
        return type("PageRequest", (_PageRequest,), {"key": self.key, "answers": answers})


class _PageRequest(BaseHTTPRequestHandler):
    key: str
    answers: Mapping[str, Callable[[Mapping[str, str]], dict[str, Any]]]
    timeout = 60
    server_version = "megatron-entropic"
    sys_version = ""

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        _, _, rest = address.path.partition("/")
        key, slash, name = rest.partition("/")
        host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        if not slash or not secrets.compare_digest(key.encode(), self.key.encode()) or host not in _LOCAL_NAMES:
            self._send(HTTPStatus.NOT_FOUND, "text/plain; charset=utf-8", b"not found\n")
        elif name in _FILES:
            file, kind = _FILES[name]
            self._send(HTTPStatus.OK, kind, Path(__file__).with_name(file).read_bytes())
        elif name in self.answers:
            self._send(*self._answer(name, dict(parse_qsl(address.query))))
        else:
            self._send(HTTPStatus.NOT_FOUND, "text/plain; charset=utf-8", b"not found\n")

    def _answer(self, name: str, asked: Mapping[str, str]) -> tuple[HTTPStatus, str, bytes]:
        """The answer, or what is wrong with the question: as JSON too, which the page shows where it shows what is wrong."""
        try:
            answer = self.answers[name](asked)
        except (ValueError, LookupError, OSError, sqlite3.Error) as error:
            answer = {"error": f"missing: {error}" if type(error) is KeyError else str(error)}
        return HTTPStatus.OK, "application/json", json.dumps(answer, allow_nan=False).encode()

    def _send(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        try:
            self.send_response(status)
            for header, value in {**_HEADERS, "Content-Type": kind, "Content-Length": str(len(content))}.items():
                self.send_header(header, value)
            self.end_headers()
            self.wfile.write(content)
        except ConnectionError:  # the page was closed, or asked for something else meanwhile
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug("viewer: " + format, *args)
