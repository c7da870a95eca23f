"""What the real libraries hold of a run, read back: W&B's offline folder, MLflow's store by its own client, TensorBoard's events."""

import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from megatron_entropic.config import Config
from megatron_entropic.observability.trackers import Alert, SampleRow, TensorBoardTracker, Trackers, background
from tests.observability.trackers.wandb_files import read_runs

ROWS = [SampleRow("2+2=", "4 | \n# `no`", 1.0, 5, "stop"), SampleRow("2+3=", "6", 0.0, 2, "length")]
BEGINS = Alert("no_signal", "begins", 1, 5, "no reward signal in this step")
OVER = Alert("no_signal", "over", 9, 5, "after 5 steps")
SECRET = "alerts.webhook=https://hooks.example/services/T0/HIDDEN"
Make = Callable[..., Config]


def track(cfg: Config, steps: range, ids: dict[str, str], history: range = range(0)) -> None:
    """A start of a run that trains `steps`."""
    lines = [metrics(step) for step in history]
    trackers = Trackers(cfg, first_step=steps.start, ids=ids, history=lines)
    for step in steps:
        if step == 1:
            trackers.log_samples(step, ROWS)
        trackers.log(step, metrics(step))
    trackers.log_alert(BEGINS)
    trackers.log_alert(OVER)
    trackers.log_summary({"status": "finished", "steps": steps.stop, "reward/mean": 0.25})
    trackers.close(time.monotonic() + 60)


def metrics(step: int) -> dict[str, float | int | None]:
    return {
        "step": step,
        "policy/entropy": 0.5 + step,
        "control/alpha": None,
        "grad_norm": math.nan,
        "validation/my set/avg": step / 10,
    }


@pytest.mark.slow
def test_wandb_offline(configured: Make) -> None:
    cfg = configured("wandb", tracking__wandb_project="a project", tracking__wandb_group="g", tracking__wandb_tags="[one, two]")
    ids: dict[str, str] = {}
    track(cfg, range(3), ids)
    track(configured("wandb", optimizer__lr=0.5), range(2, 4), ids, history=range(2))
    first, second = read_runs(cfg.run_dir)
    assert first.run_id == second.run_id == ids["wandb"]
    (run,) = first.of("run")
    assert (run.project, run.display_name, run.run_group, list(run.tags)) == ("a project", "a run #1", "g", ["one", "two"])
    assert [(line["_step"], line["policy/entropy"], line["validation/my set/avg"]) for line in first.history] == [
        (0, 0.5, 0.0),
        (1, 1.5, 0.1),
        (2, 2.5, 0.2),
    ]
    assert not {"control/alpha", "grad_norm"} & {name for line in first.history for name in line}
    assert [line["_step"] for line in second.history] == [2, 3], "from the checkpoint on"
    assert first.table(_nested(first.history[1], "samples"))[0] == {
        "step": 1,
        "prompt": "2+2=",
        "response": "4 | \n# `no`",
        "reward": 1.0,
        "length": 5,
        "finish_reason": "stop",
    }
    assert [(alert.title, alert.level) for alert in first.of("alert")] == [
        ("no signal (step 2)", "WARN"),
        ("no signal is over (step 10)", "INFO"),
    ]
    assert (first.config["optimizer"]["lr"], second.config["optimizer"]["lr"]) == (cfg.optimizer.lr, 0.5)
    assert first.summary["final/status"] == "finished"
    assert first.of("exit")[-1].exit_code == 0
    (metric,) = first.of("metric")
    assert (metric.glob_name, metric.summary.max) == ("validation/*", True)


def _nested(line: dict[str, object], name: str) -> dict[str, object]:
    """A value that the history holds by its parts."""
    return {key.removeprefix(f"{name}/"): value for key, value in line.items() if key.startswith(f"{name}/")}


@pytest.mark.slow
def test_the_end_of_wandbs_own_process_is_no_end_of_the_run(
    configured: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is killed, then stopped so that it hangs. Nothing of it stays."""
    monkeypatch.setattr(background, "RETRY_S", (0.01,))
    for harm in ("kill", "suspend"):
        trackers = Trackers(configured("wandb"))
        trackers.log(0, metrics(0))
        (core,) = [process for process in psutil.Process().children() if process.name() == "wandb-core"]
        getattr(core, harm)()
        for step in range(1, 20):
            trackers.log(step, metrics(step))
        trackers.log_summary({"status": "finished"})
        trackers.close(time.monotonic() + (20 if harm == "kill" else 1))
        psutil.wait_procs([core], timeout=20)
        assert not core.is_running() or core.status() == psutil.STATUS_ZOMBIE
    assert "tracker wandb was not done within tracking.flush_s" in caplog.text
    assert "tracker wandb failed at" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("where", ["beside", "setting", "variable"])
def test_mlflow_store(configured: Make, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.tracking import MlflowClient

    store = tmp_path / ("mlruns" if where == "beside" else "my store #2")
    settings = {"tracking__mlflow_uri": store} if where == "setting" else {}
    if where == "variable":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", store.as_uri())
    cfg = configured("mlflow", tracking__mlflow_experiment="my experiment", **settings)
    ids: dict[str, str] = {}
    track(cfg, range(3), ids)
    if where == "beside":
        track(configured("mlflow", optimizer__lr=0.5, tracking__mlflow_experiment="my experiment"), range(2, 4), ids, history=range(2))
    client = MlflowClient(tracking_uri=store.as_uri())
    experiment = client.get_experiment_by_name("my experiment")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == ids["mlflow"]
    assert (run.info.run_name, run.info.status) == ("a run #1", "FINISHED")
    history = client.get_metric_history(run.info.run_id, "policy/entropy")
    expected = [(0, 0.5), (1, 1.5), (2, 2.5)] + [(2, 2.5), (3, 3.5)] * (where == "beside")
    assert sorted((metric.step, metric.value) for metric in history) == expected
    assert set(run.data.metrics) == {"policy/entropy", "validation/my set/avg"}
    assert run.data.params["optimizer.lr"] == str(cfg.optimizer.lr)
    assert run.data.params["run.name"] == "a run #1"
    if where == "beside":
        assert run.data.tags["optimizer.lr from step 2"] == "0.5"
        assert run.data.tags["resumed_from_step"] == "2"
    assert run.data.tags["alert.no_signal"] == "no signal is over (step 10): after 5 steps"
    assert run.data.tags["final.reward/mean"] == "0.25"
    folder = Path(client.download_artifacts(run.info.run_id, "samples", str(tmp_path)))
    assert '"response": "4 | \\n# `no`"' in (folder / "step-000001.json").read_text()


@pytest.mark.slow
def test_a_server_that_is_not_there_is_no_end_of_the_run(
    configured: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(background, "RETRY_S", (0.01,))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:HIDDEN@127.0.0.1:9")
    trackers = Trackers(configured("mlflow"))
    trackers.log(0, metrics(0))
    trackers.close(time.monotonic() + 60)
    assert "tracker mlflow cannot be opened yet" in caplog.text
    assert "HIDDEN" not in caplog.text


@pytest.mark.slow
def test_no_secret_reaches_a_tracker(configured: Make, tmp_path: Path) -> None:
    cfg = configured("wandb", "mlflow", alerts__webhook=SECRET.partition("=")[2])
    track(cfg, range(1), {})
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(b"hooks.example" in path.read_bytes() for path in written)
    assert [path for path in written if b"HIDDEN" in path.read_bytes()] == []
    assert os.environ["WANDB_ERROR_REPORTING"] == "false"


@pytest.mark.slow
def test_a_tracker_gets_what_it_missed_when_the_run_is_resumed(configured: Make, tmp_path: Path) -> None:
    """Steps 1 and 2 were trained after the last one that TensorBoard took; MLflow is new."""
    cfg = configured("tensorboard")
    ids: dict[str, str] = {}
    track(cfg, range(1), ids)
    track(configured("tensorboard", "mlflow"), range(3, 5), ids, history=range(3))
    assert _events(cfg.run_dir / ids["tensorboard"]) == [(step, 0.5 + step) for step in range(5)]
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
    assert [metric.step for metric in client.get_metric_history(ids["mlflow"], "policy/entropy")] == list(range(5))


@pytest.mark.slow
def test_tensorboard_keeps_finite_scalars_and_forgets_what_a_killed_run_logged(configured: Make) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    cfg = configured("tensorboard")
    track(cfg, range(5), {})
    resumed = TensorBoardTracker(cfg.run_dir, first_step=3)
    resumed.log(3, {"policy/entropy": 9.0})
    resumed.close()
    folder = cfg.run_dir / "logs/tensorboard"
    assert _events(folder) == [(0, 0.5), (1, 1.5), (2, 2.5), (3, 9.0)]
    events = EventAccumulator(str(folder))
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == ["policy/entropy", "validation/my set/avg"]
    texts = {name: events.Tensors(name)[0] for name in events.Tags()["tensors"]}
    assert b"2+2=" in texts["samples/text_summary"].tensor_proto.string_val[0]
    assert b"no reward signal" in texts["alerts/no_signal/text_summary"].tensor_proto.string_val[0]


def _events(folder: Path) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars("policy/entropy")]
