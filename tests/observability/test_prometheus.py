"""The endpoint for Prometheus, scraped over HTTP and read by prometheus_client's own parser."""

import http.client
import math
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from megatron_entropic.config import TrackingConfig
from megatron_entropic.observability.prometheus import EndpointError, PrometheusEndpoint
from megatron_entropic.rollout.types import MetricsServer
from megatron_entropic.system.rendezvous import listen

KEY = "the key"
VLLM = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="my \\"model\\""} 3.0
# HELP vllm:prompt_tokens_total Number of prefill tokens processed.
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{engine="0"} 17.0
# HELP vllm:time_to_first_token_seconds Histogram of time to first token in seconds.
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.1"} 1.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf"} 2.0
vllm:time_to_first_token_seconds_count{engine="0"} 2.0
vllm:time_to_first_token_seconds_sum{engine="0"} 0.5
"""


class Server:
    """Gives `text` at /metrics to who has the key: at once, never ("hang"), or bit by bit ("drip"). Ended by `close`."""

    def __init__(self, text: str, manner: str = "") -> None:
        self.asked: list[tuple[str, str]] = []
        self._end = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append((self.path, self.headers["Authorization"]))
                if manner == "hang":
                    server._end.wait(60)
                if manner == "redirect":
                    self.send_response(302)
                    self.send_header("Location", f"http://127.0.0.1:{server.port}/elsewhere")
                    self.end_headers()
                    return
                self.send_response(200 if self.headers["Authorization"] == f"Bearer {KEY}" else 401)
                self.end_headers()
                self.wfile.write(text.encode() if manner != "drip" else b"#")
                while manner == "drip" and not server._end.wait(0.01):
                    self.wfile.write(b"#")

            def log_message(self, format: str, *arguments: Any) -> None:
                """Silent."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign, assignment]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.port = self._server.server_port

    def named(self, name: str, key: str = KEY) -> MetricsServer:
        return MetricsServer(name, f"http://127.0.0.1:{self.port}", {"Authorization": f"Bearer {key}"})

    def close(self) -> None:
        self._end.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def opened() -> Iterator[list[Any]]:
    """What is to be closed at the end."""
    found: list[Any] = []
    yield found
    for each in found:
        each.close()


def free_port() -> int:
    with listen("127.0.0.1") as listener:
        return int(listener.getsockname()[1])


def scrape(port: int) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Samples by name and labels, of one real scrape."""
    from prometheus_client.parser import text_string_to_metric_families

    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/metrics")
    answer = connection.getresponse()
    assert answer.status == 200
    families = text_string_to_metric_families(answer.read().decode())
    connection.close()
    return {(sample.name, frozenset(sample.labels.items())): sample.value for family in families for sample in family.samples}


def value(samples: dict[tuple[str, frozenset[tuple[str, str]]], float], name: str, **labels: str) -> float:
    return samples[name, frozenset({"run": 'my "run"\n #1', **labels}.items())]


def endpoint(opened: list[Any], *servers: MetricsServer, timeout_s: float = 30.0) -> PrometheusEndpoint:
    cfg = TrackingConfig(prometheus_port=free_port(), prometheus_timeout_s=timeout_s)
    found = PrometheusEndpoint(cfg, 'my "run"\n #1', 40, lambda: servers)
    opened.append(found)
    assert found.port == cfg.prometheus_port
    return found


def test_the_latest_metrics_are_gauges(opened: list[Any]) -> None:
    shown = endpoint(opened)
    assert value(scrape(shown.port), "entropic_steps_done") == 0
    for step in range(2):
        metrics = {"step": step, "policy/entropy": 0.5 + step, "grad_norm": math.inf, "control/alpha": None}
        shown.log(step, {**metrics, "validation/my set-2/avg": 0.25})
    samples = scrape(shown.port)
    assert value(samples, "entropic_policy_entropy") == 1.5
    assert value(samples, "entropic_grad_norm") == math.inf
    assert value(samples, "entropic_validation_my_set_2_avg") == 0.25
    assert value(samples, "entropic_steps_done") == 2
    assert value(samples, "entropic_steps_planned") == 40
    assert abs(value(samples, "entropic_last_step_timestamp_seconds") - time.time()) < 3600
    assert not [name for name, _ in samples if "alpha" in name]
    shown.close()
    shown.close()
    with pytest.raises(ConnectionRefusedError):
        scrape(shown.port)


def test_servers_metrics_come_through_with_their_key(opened: list[Any]) -> None:
    one, two = Server(VLLM), Server(VLLM.replace("} 3.0", "} 4.0"))
    opened += [one, two]
    samples = scrape(endpoint(opened, one.named("vllm_0"), two.named("vllm_1")).port)
    model = 'my "model"'
    assert value(samples, "vllm:num_requests_running", server="vllm_0", engine="0", model_name=model) == 3
    assert value(samples, "vllm:num_requests_running", server="vllm_1", engine="0", model_name=model) == 4
    assert value(samples, "vllm:prompt_tokens_total", server="vllm_1", engine="0") == 17
    assert value(samples, "vllm:time_to_first_token_seconds_bucket", server="vllm_0", engine="0", le="0.1") == 1
    assert [value(samples, "entropic_server_up", server=name) for name in ("vllm_0", "vllm_1")] == [1, 1]
    assert one.asked == [("/metrics", f"Bearer {KEY}")]
    assert KEY not in repr(one.named("vllm_0"))


@pytest.mark.parametrize("manner", ["hang", "drip", "redirect", "wrong key", "nonsense", "gone"])
def test_a_server_that_gives_none_is_down_and_the_others_are_not(opened: list[Any], manner: str) -> None:
    good, bad = Server(VLLM), Server("{ no metrics" if manner == "nonsense" else VLLM, manner)
    opened.append(good)
    named = bad.named("vllm_1", "another" if manner == "wrong key" else KEY)
    if manner == "gone":
        bad.close()
    else:
        opened.append(bad)
    shown = endpoint(opened, good.named("vllm_0"), named, timeout_s=0.5)
    samples = scrape(shown.port)
    assert [value(samples, "entropic_server_up", server=name) for name in ("vllm_0", "vllm_1")] == [1, 0]
    assert value(samples, "vllm:prompt_tokens_total", server="vllm_0", engine="0") == 17
    assert all(path == "/metrics" for path, _ in bad.asked)


def test_who_connects_and_says_nothing_holds_nobody(opened: list[Any]) -> None:
    shown = endpoint(opened)
    with socket.create_connection(("127.0.0.1", shown.port)):
        assert value(scrape(shown.port), "entropic_steps_done") == 0
        shown.close()


def test_a_taken_port_is_one_error(opened: list[Any]) -> None:
    with listen("127.0.0.1") as taken:
        cfg = TrackingConfig(prometheus_port=taken.getsockname()[1])
        with pytest.raises(EndpointError, match=rf"tracking.prometheus_port={cfg.prometheus_port}: cannot listen on 127.0.0.1 port"):
            PrometheusEndpoint(cfg, "run", 3)
