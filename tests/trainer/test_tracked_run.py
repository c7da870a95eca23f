"""A run that is tracked by everything at once, scraped while it trains, killed, and resumed; beside it a tracker that always fails."""

import json
import os
import signal
from pathlib import Path

import pytest

from megatron_entropic.checkpoint_files.store import CheckpointStore
from megatron_entropic.observability.metrics import read_metrics
from tests.command_line import megatron_entropic
from tests.observability.alerts.receiver import Receiver
from tests.observability.test_prometheus import free_port, scrape
from tests.observability.trackers.wandb_files import read_runs
from tests.running import Running
from tests.trainer.test_reward_signal import SETTINGS

BROKEN = """
class Broken:
    run_id = "broken"

    def __init__(self, run_dir, run_id, first_step):
        pass

    def log(self, step, metrics):
        raise ConnectionError("no network")

    def close(self):
        raise OSError("disk full")
"""


@pytest.mark.slow
def test_tracked_scraped_killed_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # for the client of this process
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run, port = tmp_path / "run #1", free_port()
    (tmp_path / "broken.py").write_text(BROKEN)
    trackers = "trainer.trackers=[tensorboard, wandb, mlflow, {}]"
    with Receiver() as receiver:
        monkeypatch.setenv("MY_HOOK", receiver.url)
        arguments = [f"run.dir={run}", *SETTINGS, "trainer.steps=5000", "checkpoint.every=3", "checkpoint.asynchronous=false"]
        arguments += [f"tracking.prometheus_port={port}", "tracking.samples_every=2", "alerts.webhook=env:MY_HOOK"]
        arguments += ["alerts.no_signal_steps=2", "trainer.tensorboard=true", trackers.format(f"{tmp_path}/broken.py:Broken")]
        with Running(run, "train", "quickstart", *arguments) as running:
            store = CheckpointStore(run / "checkpoints")
            assert running.wait_until(lambda: store.latest() and running.steps >= 5), running.output
            samples = {name: value for (name, labels), value in scrape(port).items() if ("run", "quickstart") in labels}
            receiver.wait_for(lambda posted: len(posted) >= 1)
            os.kill(running.process.pid, signal.SIGKILL)
            assert running.wait() == -signal.SIGKILL
            said = running.output
        assert samples["entropic_steps_done"] >= 5
        assert samples["entropic_policy_entropy"] in {line["policy/entropy"] for line in read_metrics(run / "metrics.jsonl")}
        assert said.count("broken.py:Broken failed at log: ConnectionError: no network") == 1, said
        saved = int(str(store.latest()).removeprefix("step-"))
        outcome = megatron_entropic(
            *("train", str(run), "--resume", f"trainer.steps={saved + 2}", trackers.format("").replace(", ]", "]")),
        )
        assert outcome.code == 0, outcome.output
        assert outcome.left_behind == []
    assert [(alert["kind"], alert["state"], alert["step"]) for alert in receiver.posted] == [("no_signal", "begins", 1)]
    lines = read_metrics(run / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(saved + 2))
    _check_wandb(run, saved)
    _check_mlflow(tmp_path, run, lines)
    state = json.loads((run / "checkpoints" / str(store.latest()) / "state.json").read_text())
    assert set(state["trackers"]) == {"tensorboard", "wandb", "mlflow", f"{tmp_path}/broken.py:Broken"}
    assert state["trackers"]["tensorboard"] == "logs/tensorboard"
    assert [path for path in run.rglob("*") if path.is_file() and b"HIDDEN" in path.read_bytes()] == []


def _check_wandb(run: Path, saved: int) -> None:
    """Two folders of one run: the killed start's, up to where it was killed, and the resumed one's."""
    first, second = read_runs(run)
    assert first.run_id == second.run_id
    steps = [line["_step"] for line in second.history]
    assert steps[-2:] == [saved, saved + 1]
    assert steps == sorted(set(steps))
    lines = read_metrics(run / "metrics.jsonl")
    held = {line["_step"]: line["policy/entropy"] for line in (*first.history, *second.history)}
    assert {step: held[step] for step in range(saved + 2)} == {line["step"]: line["policy/entropy"] for line in lines}
    assert second.summary["final/status"] == "finished"
    assert second.config["trainer"]["steps"] == saved + 2


def _check_mlflow(store: Path, run: Path, lines: list[dict[str, float]]) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=(store / "mlruns").as_uri())
    (found,) = client.search_runs([client.get_experiment_by_name("megatron-entropic").experiment_id])
    assert found.info.status == "FINISHED"
    history = client.get_metric_history(found.info.run_id, "policy/entropy")
    latest = {metric.step: metric.value for metric in sorted(history, key=lambda metric: metric.timestamp)}
    assert {line["step"]: line["policy/entropy"] for line in lines}.items() <= latest.items()
    assert found.data.tags["alert.no_signal"].startswith("no signal (step 2): no reward signal")
    samples = [path.path for path in client.list_artifacts(found.info.run_id, "samples")]
    assert "samples/step-000000.json" in samples
