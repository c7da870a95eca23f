"""How a run's end is told: done, stopped to be resumed, failed, or a server lost."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from megatron_entropic.config.loading import load_config
from megatron_entropic.observability.outlets import Outlets
from megatron_entropic.rollout.source import RolloutSource
from megatron_entropic.rollout.types import RolloutError, ServerLostError
from megatron_entropic.rollout.vllm.client import ServerClient
from megatron_entropic.system.folder_lock import FolderOwnedError
from megatron_entropic.system.stop_signal import StoppedAtOnce, StopRequested
from tests.observability.alerts.receiver import Receiver
from tests.observability.synthetic_runs import synthetic_metrics
from tests.observability.test_prometheus import free_port

ENDS = """
import json

class Ends:
    run_id = "ends"

    def __init__(self, run_dir, run_id, first_step):
        self.path = run_dir / "ends.json"

    def log(self, step, metrics):
        pass

    def log_summary(self, summary):
        self.path.write_text(json.dumps(summary))

    def close(self):
        pass
"""


class Dead(ServerClient):
    """A server whose process has ended, at an address where nobody listens."""

    def exit_code(self) -> int | None:
        return 1

    def location(self) -> str:
        return "pid 1"


def dead(folder: Path) -> Dead:
    return Dead(0, "http://127.0.0.1:9", "the key", folder / "vllm_0.log")


def lost(folder: Path) -> Exception:
    """What the run ends with when its server has died."""
    (folder / "vllm_0.log").write_text("ERROR 11-27 CUDA error: the key is not in here\n")
    with pytest.raises(RolloutError) as raised:
        dead(folder).call("GET", "/x", timeout_s=5)
    return raised.value


def test_a_server_that_died_or_hangs_is_lost(tmp_path: Path) -> None:
    assert isinstance(lost(tmp_path), ServerLostError)
    assert isinstance(dead(tmp_path).failed("a request", httpx.ReadTimeout("")), ServerLostError)
    assert isinstance(dead(tmp_path).too_slow("a request", 3, "rollout.request_timeout_s"), ServerLostError)


@pytest.mark.parametrize(
    ("end", "status", "kind", "message"),
    [
        (lambda folder: None, "finished", None, ""),
        (lambda folder: StopRequested("SIGTERM"), "stopped", None, ""),
        (lambda folder: FolderOwnedError("taken over"), "another's", None, ""),
        (lambda folder: StoppedAtOnce(130), "stopped", None, ""),
        (
            lost,
            "failed",
            "server_lost",
            "the run has ended: ServerLostError: rollout server 0 (http://127.0.0.1:9, pid 1, exit code 1)",
        ),
        (lambda folder: ValueError("loss is NaN\nat length"), "failed", "run_failed", "the run has ended: ValueError: loss is NaN"),
    ],
)
def test_the_end_of_a_run(tmp_path: Path, end: Any, status: str, kind: str | None, message: str) -> None:
    (tmp_path / "ends.py").write_text(ENDS)
    with Receiver() as receiver:
        settings = [f"run.dir={tmp_path}", "trainer.tensorboard=false", f"trainer.trackers=[{tmp_path}/ends.py:Ends]"]
        settings += [f"alerts.webhook={receiver.url}", f"tracking.prometheus_port={free_port()}", "tracking.samples_every=0"]
        settings += ["alerts.no_signal_steps=0", "alerts.disk_free_gb=0"]
        cfg = load_config("quickstart", settings)
        outlets = Outlets(cfg, RolloutSource(cfg, SimpleNamespace(rank=0)), {}, [])  # type: ignore[arg-type]
        metrics = synthetic_metrics(2)
        for step, line in enumerate(metrics):
            outlets.log(step, {**line, "validation/a/avg": 0.5}, [], [])
        outlets.close(end(tmp_path))
        outlets.close(None)
    assert [(alert["kind"], alert["step"]) for alert in receiver.posted] == ([(kind, 2)] if kind else [])
    assert all(message in alert["message"] and "\n" not in alert["message"] for alert in receiver.posted)
    if status == "another's":
        assert not (tmp_path / "ends.json").exists()
        return
    told = json.loads((tmp_path / "ends.json").read_text())
    assert (told["status"], told["steps"], told["validation/a/avg"]) == (status, 2, 0.5)
    assert told["reward/mean"] == metrics[-1]["reward/mean"]
