"""An endpoint for Prometheus: the trainer's latest metrics, and the vLLM servers' own, scraped through it.

    entropic_policy_entropy{run="my run"} 0.84             each metric of metrics.jsonl, / as _
    entropic_server_up{run="my run",server="vllm_0"} 1     whether the server gave its metrics
    vllm:num_requests_running{run="my run",server="vllm_0",...} 3

It asks for no key, so it listens on loopback unless it is told otherwise. The servers' key goes to them alone.
"""

import http.client
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from megatron_entropic.config.tracking import TrackingConfig, address_taken
from megatron_entropic.errors import ReportedError
from megatron_entropic.observability.metrics import METRIC_FIELDS, MetricValue
from megatron_entropic.rollout.types import MetricsServer

if TYPE_CHECKING:
    from prometheus_client import Metric

logger = logging.getLogger(__name__)

PREFIX = "entropic_"
_ODD = re.compile(r"[^a-zA-Z0-9_]")
_LARGEST = 2**24
"""Bytes of a server's answer that are read."""


class EndpointError(ReportedError, OSError):
    """The endpoint cannot be opened; the message names the setting."""


class PrometheusEndpoint:
    """A Tracker that answers at http://host:port/metrics until it is closed.

    `servers` are asked for at each scrape: those that are ready by then. Raises EndpointError for an address that is taken.
    """

    def __init__(self, cfg: TrackingConfig, run: str, steps: int, servers: Callable[[], Sequence[MetricsServer]] = lambda: ()) -> None:
        from prometheus_client import CollectorRegistry, start_http_server

        self._timeout_s, self._run, self._steps, self._servers = cfg.prometheus_timeout_s, run, steps, servers
        self._latest: tuple[int, Mapping[str, MetricValue], float] | None = None
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        try:
            self._httpd, self._thread = start_http_server(cfg.prometheus_port, cfg.prometheus_host, registry)
        except OSError as error:
            raise EndpointError(address_taken(cfg, error)) from error
        self._open = True
        logger.info("metrics for Prometheus: http://%s:%d/metrics", cfg.prometheus_host, self.port)

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._httpd.server_port)

    def log(self, step: int, metrics: Mapping[str, MetricValue]) -> None:
        """Shows the metrics of `step` from now on."""
        self._latest = (step, dict(metrics), time.time())

    def close(self) -> None:
        """Ends the endpoint; safe to call twice."""
        if self._open:
            self._open = False
            self._httpd.shutdown()
            self._httpd.server_close()
            self._thread.join()

    def collect(self) -> Iterator["Metric"]:
        """All metrics, for prometheus_client; called in a thread of its own for each scrape."""
        yield from self._of_trainer()
        yield from self._of_servers()

    def _of_trainer(self) -> Iterator["Metric"]:
        from prometheus_client.core import GaugeMetricFamily

        def gauge(name: str, meaning: str, value: float) -> "Metric":
            family = GaugeMetricFamily(PREFIX + name, meaning, labels=("run",))
            family.add_metric((self._run,), value)
            return family

        yield gauge("steps_planned", "trainer.steps", self._steps)
        if self._latest is None:
            yield gauge("steps_done", "steps done", 0)
            return
        step, metrics, when = self._latest
        yield gauge("steps_done", "steps done", step + 1)
        yield gauge("last_step_timestamp_seconds", "when the last step was done", when)
        shown = {metric_name(name): (name, value) for name, value in metrics.items() if name != "step" and value is not None}
        for name, (field, value) in shown.items():
            meaning = METRIC_FIELDS[field].description if field in METRIC_FIELDS else field
            unit = METRIC_FIELDS[field].unit if field in METRIC_FIELDS else ""
            yield gauge(name, f"{meaning} [{unit}]" if unit not in ("", "1") else meaning, float(value))

    def _of_servers(self) -> Iterator["Metric"]:
        from prometheus_client.core import GaugeMetricFamily

        servers = list(self._servers())
        if not servers:
            return
        up = GaugeMetricFamily(f"{PREFIX}server_up", "whether the server gave its metrics in time", labels=("run", "server"))
        families: dict[str, Metric] = {}
        for server, found in zip(servers, _ask_all(servers, self._timeout_s), strict=True):
            up.add_metric((self._run, server.name), float(found is not None))
            for family in found or ():
                known = families.setdefault(family.name, family)
                samples = [
                    sample._replace(labels={**sample.labels, "run": self._run, "server": server.name}) for sample in family.samples
                ]
                known.samples = samples if known is family else [*known.samples, *samples]
        yield up
        yield from families.values()


def metric_name(field: str) -> str:
    """The name of a metric of metrics.jsonl, without the prefix, such as Prometheus takes."""
    return _ODD.sub("_", field)


def _ask_all(servers: Sequence[MetricsServer], timeout_s: float) -> list[Sequence["Metric"] | None]:
    """Each server's metrics, None for one that did not give them within the limit. One that hangs takes nobody else's time."""
    answers: list[Sequence[Metric] | None] = [None] * len(servers)

    def ask(number: int) -> None:
        answers[number] = _ask(servers[number], timeout_s)

    threads = [threading.Thread(target=ask, args=(number,), daemon=True) for number in range(len(servers))]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + timeout_s
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return list(answers)


def _ask(server: MetricsServer, timeout_s: float) -> Sequence["Metric"] | None:
    """The server's metrics; None, with a line in the log file, when it gives none. Follows no redirect: the key is this server's."""
    from prometheus_client.parser import text_string_to_metric_families

    try:
        return list(text_string_to_metric_families(_read(server, time.monotonic() + timeout_s, timeout_s)))
    except (OSError, http.client.HTTPException, ValueError) as error:
        logger.debug("%s gave no metrics: %s: %s", server.name, type(error).__name__, error)
        return None


def _read(server: MetricsServer, deadline: float, timeout_s: float) -> str:
    """The text of the server's /metrics. Raises OSError, HTTPException, ValueError."""
    parts = urlsplit(server.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout_s)
    try:
        connection.request("GET", "/metrics", headers=dict(server.headers))
        answer = connection.getresponse()
        if answer.status != 200:
            raise ValueError(f"it answered {answer.status}")
        content = b""
        while chunk := answer.read1(2**16):
            content += chunk
            if len(content) > _LARGEST or time.monotonic() > deadline:
                raise ValueError("its answer is too long, or too slow")
        return content.decode()
    finally:
        connection.close()
