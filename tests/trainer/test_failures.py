"""Bad input ends in one clear error, an exit code that is not 0, and no process left behind."""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.command_line import ROOT, Outcome, megatron_entropic
from tests.tiny_models import TINY_DECOMPOSE


def refused(*arguments: str, run_dir: Path) -> Outcome:
    """A run that must fail before it trains: one error line, nothing left."""
    outcome = megatron_entropic("train", "quickstart", f"run.dir={run_dir}", "trainer.steps=1", *arguments)
    assert outcome.code != 0, outcome.output
    assert outcome.left_behind == []
    assert "Traceback" not in outcome.output, outcome.output
    errors = [line for line in outcome.output.splitlines() if re.search(r"^megatron-entropic: error: |\[rank \d\] error: ", line)]
    assert len(errors) == 1, outcome.output
    assert not list(run_dir.glob("report.html"))
    return outcome


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY_DECOMPOSE, tmp_path / "model"))


def test_a_typo_fails_before_anything_starts(tmp_path: Path) -> None:
    start = time.monotonic()
    outcome = refused("trainer.step=3", run_dir=tmp_path / "run")
    assert "did you mean 'trainer.steps'" in outcome.output
    assert not (tmp_path / "run").exists()
    assert time.monotonic() - start < 30


def test_missing_weights_are_named(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").unlink()
    outcome = refused(f"model.hf_path={model}", run_dir=tmp_path / "run")
    assert "model.safetensors" in outcome.output


def test_truncated_weights_are_named(model: Path, tmp_path: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    outcome = refused(f"model.hf_path={model}", run_dir=tmp_path / "run")
    assert str(weights) in outcome.output
    assert "truncated" in outcome.output


def test_a_tokenizer_that_does_not_fit_the_embedding_is_named(model: Path, tmp_path: Path) -> None:
    path = model / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["vocab"]["€"] = 99
    path.write_text(json.dumps(tokenizer))
    outcome = refused(f"model.hf_path={model}", run_dir=tmp_path / "run")
    assert "tokenizer.json" in outcome.output
    assert "99" in outcome.output


def test_an_impossible_layout_names_field_and_legal_values(tmp_path: Path) -> None:
    outcome = refused("parallel.tensor=3", "parallel.pipeline=2", run_dir=tmp_path / "run")
    assert "parallel.tensor=3" in outcome.output
    assert "parallel.pipeline=2" in outcome.output
    assert "legal values: 1, 3" in outcome.output


def test_an_earlier_run_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("{}")
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 0}\n')
    outcome = refused(run_dir=tmp_path / "run")
    assert "--overwrite" in outcome.output
    assert (tmp_path / "run" / "config.yaml").read_text() == "{}"


@pytest.mark.slow
@pytest.mark.distributed
def test_replaying_another_run_is_refused_on_all_ranks(tmp_path: Path) -> None:
    outcome = refused("rollout.engine=replay", f"rollout.replay_path={tmp_path / 'none'}", run_dir=tmp_path / "run")
    assert "rollout.replay_path" in outcome.output


@pytest.mark.slow
@pytest.mark.distributed
def test_a_sampler_that_drifts_from_the_trainer_ends_the_run(tmp_path: Path) -> None:
    settings = ["rollout.engine=local", "rollout.max_logprob_gap=1e-9", "batch.prompts_per_step=8", "trainer.steps=3"]
    outcome = megatron_entropic("train", "quickstart", *settings, f"run.dir={tmp_path / 'run'}")
    assert outcome.code == 1, outcome.output
    assert outcome.left_behind == []
    assert outcome.output.count("above rollout.max_logprob_gap=1e-09") == 1, outcome.output
    assert "Likely causes: a config.json that the sampler reads otherwise" in outcome.output
    assert "1 of 3 steps done" in outcome.output


@pytest.mark.slow
@pytest.mark.distributed
def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        outcome = refused(f"rollout.base_port={port}", run_dir=tmp_path / "run")
    assert str(port) in outcome.output
    assert "rollout.base_port" in outcome.output


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.distributed
def test_a_server_that_dies_while_starting_is_named_with_its_log(tmp_path: Path) -> None:
    outcome = refused("rollout.server_args=[--no-such-flag]", run_dir=tmp_path / "run")
    assert re.search(r"rollout server [01] .*exit code 2\) died while starting; log .*vllm_[01].log", outcome.output)
    assert "unrecognized arguments: --no-such-flag" in outcome.output


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_launcher_takes_its_ranks_along(tmp_path: Path, signum: signal.Signals) -> None:
    run_dir = tmp_path / "run"
    command = ["train", "quickstart", "rollout.engine=local", "trainer.steps=1000", f"run.dir={run_dir}"]
    launcher = subprocess.Popen([sys.executable, "-m", "megatron_entropic.cli", *command], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not (run_dir / "metrics.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.2)
        assert (run_dir / "metrics.jsonl").exists()
        launcher.send_signal(signum)
        launcher.wait(30)
    finally:
        launcher.kill()
    deadline = time.monotonic() + 30
    while (left := processes_of(run_dir)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == []


def processes_of(run_dir: Path) -> list[str]:
    listed = subprocess.run(["ps", "-eo", "pid,stat,args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if str(run_dir) in line and " Z" not in line]
