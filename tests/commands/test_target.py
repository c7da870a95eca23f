"""`megatron-entropic target`: what it says and refuses, and a real run of two ranks that follows."""

import json
import logging
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from megatron_entropic import cli, trainer
from megatron_entropic.config import Config
from megatron_entropic.config.loading import load_config
from megatron_entropic.control import Controller, make_controller
from megatron_entropic.control.target_file import NAME, read_target, write_target
from megatron_entropic.distributed.parallel import initialize_parallel
from megatron_entropic.observability.metrics import read_metrics
from megatron_entropic.observability.run_output import RunOutput
from tests.command_line import ROOT
from tests.observability.synthetic_runs import make_run_dir
from tests.run_ranks import run_ranks

SETTINGS = (
    "parallel.tensor=1",
    "parallel.data=2",
    "batch.prompts_per_step=8",
    "batch.samples_per_prompt=4",
    "batch.max_tokens_per_micro_batch=256",
    "rollout.engine=local",
    "rollout.max_new_tokens=8",
    "trainer.tensorboard=false",
    "trainer.export_hf=false",
    "control.target_entropy=0.85",
)


def target(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(["target", *arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize(
    ("nats", "message"), [("-0.5", "-0.5 nats: an entropy is never below 0"), ("9", "no policy .* more than 4.60")]
)
def test_a_target_that_no_policy_can_have_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], nats: str, message: str
) -> None:
    assert target(str(make_run_dir(tmp_path, steps=1)), nats) == 2
    assert re.search(message, capsys.readouterr().err)


def test_asking_showing_and_going_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = make_run_dir(tmp_path, steps=10)
    assert target(str(run_dir)) == 0
    shown = capsys.readouterr().out
    assert "10 of 40 steps done" in shown
    assert "target   0.9 nats" in shown
    assert "asked" not in shown
    assert target(str(run_dir), "0.7") == 0
    asked = read_target(run_dir / NAME)
    assert asked is not None
    assert asked.target_entropy == 0.7
    assert "asked    for 0.7 nats at 20" in capsys.readouterr().out
    assert target(str(run_dir), "--show") == 0
    assert "takes it up in its next step" in capsys.readouterr().out
    assert target(str(run_dir), "0.9") == 0
    assert "it is the target" in capsys.readouterr().out
    assert target(str(run_dir), "--clear") == 0
    assert "asked    for the schedule's target" in capsys.readouterr().out
    asked = read_target(run_dir / NAME)
    assert asked is not None
    assert asked.target_entropy is None


def test_a_finished_run_is_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run_dir = make_run_dir(tmp_path, steps=40)
    assert target(str(run_dir), "0.7") == 0
    assert "has done all of its 40 steps" in caplog.text


def test_a_run_before_its_first_step_can_be_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = make_run_dir(tmp_path, steps=0)
    assert target(str(run_dir), "0.7") == 0
    assert "no step done yet" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("aent", ["0.7"], "control.kind=aent does not steer to an entropy target"),
        ("none", [], "control.kind=none does not steer to an entropy target"),
        ("entropic", ["nan"], "must be a finite number of nats"),
        ("entropic", ["inf"], "must be a finite number of nats"),
        ("entropic", ["much"], "invalid float value: 'much'"),
        ("entropic", ["0.7", "--clear"], "not allowed with argument NATS"),
        ("entropic", ["0.7", "0.8"], "unrecognized arguments: 0.8"),
    ],
)
def test_what_cannot_be_asked_is_one_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, arguments: list[str], message: str
) -> None:
    run_dir = make_run_dir(tmp_path, kind=kind, steps=2)
    assert target(str(run_dir), *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (run_dir / NAME).exists()


def test_a_folder_that_is_no_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert target(str(tmp_path), "0.7") == 2
    assert f"{tmp_path} is not the folder of a run" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# -- a real run


def run_rank(cfg: Config, files: Mapping[int, float | bytes | None]) -> tuple[dict[str, Any], list[str]]:
    """Trains, with rank 0 leaving a target file after some steps; the controller's last state, and what was logged of it."""
    controllers: list[Controller] = []
    messages: list[str] = []

    class Messages(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    class Output(RunOutput):
        def record(self, step: int, *args: Any) -> None:
            super().record(step, *args)
            if self.parallel.rank == 0 and step in files:
                content = files[step]
                if isinstance(content, bytes):
                    (cfg.run_dir / NAME).write_bytes(content)
                else:
                    write_target(cfg.run_dir, content)

    def keep(cfg: Config) -> Controller:
        controllers.append(make_controller(cfg))
        return controllers[-1]

    trainer.make_controller, trainer.RunOutput = keep, Output  # type: ignore[attr-defined,misc]  # this process ends with the run
    logging.getLogger("megatron_entropic.control.target_file").addHandler(Messages())
    logging.getLogger("megatron_entropic").setLevel(logging.INFO)
    trainer.train(cfg, initialize_parallel(cfg.parallel, cfg.trainer.seed))
    return controllers[-1].state_dict(), messages


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("mode", ["control.fresh_measurement=false", "control.fresh_measurement=true", "batch.mini_batches=2"])
def test_every_rank_follows_from_the_next_step_on(tmp_path: Path, mode: str) -> None:
    cfg = load_config("quickstart", [*SETTINGS, mode, f"run.dir={tmp_path}", "trainer.steps=7"])
    files = {1: 0.7, 3: b'{"target_entropy": "lower"}', 4: None}
    (state, messages), (other_state, other_messages) = run_ranks(run_rank, 2, cfg, files)
    logged = [line["control/target_entropy"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert logged == [0.85, 0.85, 0.7, 0.7, 0.7, 0.85, 0.85]
    assert state == other_state  # of which the covariance and the integral would show the smallest difference
    path = tmp_path / NAME
    assert messages[0] == f"entropy target 0.85 -> 0.7, asked for in {path}"
    assert messages[1].startswith(f"{path}: target_entropy=lower is not a finite number")
    assert messages[2:] == [f"entropy target 0.7 -> the schedule's, asked for in {path}"]
    assert other_messages == []


@pytest.mark.slow
@pytest.mark.distributed
def test_the_command_reaches_a_running_run(tmp_path: Path) -> None:
    """As a user does it: the run in one terminal, the command in another."""
    settings = [*SETTINGS, f"run.dir={tmp_path / 'run'}", "trainer.steps=100000", "control.gains=fixed", "control.kp=5"]
    command = [sys.executable, "-m", "megatron_entropic.cli"]
    metrics = tmp_path / "run" / "metrics.jsonl"
    run = subprocess.Popen([*command, "train", "quickstart", *settings], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        wait_for(run, lambda: metrics.exists() and metrics.stat().st_size > 0)
        asked = subprocess.run([*command, "target", str(tmp_path / "run"), "0.7"], cwd=ROOT, capture_output=True, text=True, check=True)
        assert "asked    for 0.7 nats" in asked.stdout
        wait_for(run, lambda: last_target(metrics) == 0.7)
    finally:
        run.send_signal(signal.SIGTERM)
        output = run.communicate(timeout=60)[0].decode()
    assert f"entropy target 0.85 -> 0.7, asked for in {tmp_path / 'run' / NAME}" in output
    logged = [line["control/target_entropy"] for line in read_metrics(metrics)]
    assert logged == sorted(logged, reverse=True)
    assert set(logged) == {0.85, 0.7}


def wait_for(run: subprocess.Popen[bytes], condition: Any) -> None:
    deadline = time.monotonic() + 180
    while not condition():
        assert run.poll() is None, "the run ended"
        assert time.monotonic() < deadline, "nothing happened for 180 s"
        time.sleep(0.2)


def last_target(metrics: Path) -> float | None:
    whole = metrics.read_bytes().splitlines(keepends=True)
    return next((json.loads(line)["control/target_entropy"] for line in reversed(whole) if line.endswith(b"\n")), None)
