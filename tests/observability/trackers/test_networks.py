"""The real libraries without a network, or with a server that says nothing: the start and the end of a run wait for a limited time."""

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from megatron_entropic.config import Config
from megatron_entropic.observability.trackers import Trackers, background, opening
from megatron_entropic.observability.trackers.tracker import TrackerRefusedError
from megatron_entropic.system.rendezvous import listen

pytestmark = pytest.mark.slow
Make = Callable[..., Config]


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As a user whom W&B does not know. The libraries are imported here, so that no time limit counts that."""
    pytest.importorskip("wandb").teardown()  # what it knows of the environment of other tests
    pytest.importorskip("mlflow.tracking")
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "NETRC"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setattr(background, "RETRY_S", (0.01,))


@pytest.fixture
def silent_server() -> Iterator[socket.socket]:
    """A server that takes connections and says nothing."""
    with listen("127.0.0.1") as listener:
        listener.settimeout(60)
        yield listener


def test_nobody_logged_in_to_wandb_is_one_line(configured: Make) -> None:
    with pytest.raises(TrackerRefusedError, match=r"trainer.trackers=wandb: .*WANDB_API_KEY, or set WANDB_MODE=offline"):
        Trackers(configured("wandb"))


@pytest.mark.parametrize("tracker", ["wandb", "mlflow"])
def test_a_server_that_says_nothing_is_let_go(
    configured: Make, tracker: str, silent_server: socket.socket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"http://127.0.0.1:{silent_server.getsockname()[1]}"
    for name, value in {"WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": url, "MLFLOW_TRACKING_URI": url}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(opening, "START_S", 0.1)
    trackers = Trackers(configured(tracker))
    connection, _ = silent_server.accept()
    for step in range(3):
        trackers.log(step, {"policy/entropy": 0.5})
    trackers.close(time.monotonic() + 0.2)
    connection.close()
    assert f"tracker {tracker} is not ready yet; training goes on meanwhile" in caplog.text
    assert f"tracker {tracker} was not done within tracking.flush_s: 4 steps, tables and alerts were not handed over" in caplog.text
    cores = [process for process in psutil.Process().children() if process.name() == "wandb-core"]
    psutil.wait_procs(cores, timeout=20)
    assert [core for core in cores if core.is_running() and core.status() != psutil.STATUS_ZOMBIE] == []
