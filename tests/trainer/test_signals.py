"""SIGTERM, SIGUSR1, SIGHUP or Ctrl-C: the run saves what it trained, exits with 75, and resumes as if nothing had happened."""

import os
import pty
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_entropic.observability.metrics import read_metrics
from megatron_entropic.system.stop_signal import EXIT_STOPPED
from tests.command_line import ROOT, megatron_entropic
from tests.running import Running
from tests.tiny_models import TINY_DECOMPOSE

pytestmark = [pytest.mark.slow, pytest.mark.distributed]
STEPS = 6
SETTINGS = (
    "rollout.engine=local",
    "batch.prompts_per_step=8",
    "batch.samples_per_prompt=4",
    "batch.max_tokens_per_micro_batch=512",
    "checkpoint.every=100",
    f"trainer.steps={STEPS}",
    "trainer.tensorboard=false",
    "trainer.export_hf=false",
    f"model.hf_path={TINY_DECOMPOSE}",
)


SLOW = """import os, time
from pathlib import Path
from megatron_entropic.algorithms.policy_loss import clipped_policy_loss

updates = 0


def slow(ratio_T, advantage_T, **settings):
    global updates
    updates += "RANK" in os.environ
    if updates > {quick}:
        Path("{begun}").touch()
        time.sleep(60)
    return clipped_policy_loss(ratio_T, advantage_T, **settings)
"""


def slow_update(folder: Path, quick: int = 0) -> tuple[Path, str]:
    """What is there once a slow update has begun, and the setting that makes updates slow after the first `quick` ones."""
    begun, file = folder / "begun", folder / "slow.py"
    file.write_text(SLOW.format(quick=quick, begun=begun))
    return begun, f"algorithm.policy_loss={file}:slow"


def start(folder: Path, *settings: str) -> Running:
    return Running(folder, "train", "quickstart", *SETTINGS, *settings, f"run.dir={folder}")


def without_times(folder: Path) -> list[dict[str, Any]]:
    lines = read_metrics(folder / "metrics.jsonl")
    return [{name: value for name, value in line.items() if not name.startswith(("time/", "perf/"))} for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert megatron_entropic("train", "quickstart", *SETTINGS, f"run.dir={folder}").code == 0
    return without_times(folder)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_and_the_resumed_run_is_the_uninterrupted_one(
    tmp_path: Path, whole: list[dict[str, Any]], signum: signal.Signals
) -> None:
    folder = tmp_path / "run"
    with start(folder) as running:
        assert running.wait_until(lambda: running.steps >= 2)
        running.send(signum)
        assert running.wait(120) == EXIT_STOPPED, running.output
        assert f"{signum.name}: the run saves and stops" in running.output
        assert "resume with: megatron-entropic train" in running.output
        assert "Traceback" not in running.output
    done = running.steps
    assert 2 <= done < STEPS
    assert (folder / "checkpoints/latest").read_text().startswith(f"step-{done:06d} ")
    assert not list(folder.glob("checkpoints/.step*"))
    outcome = megatron_entropic("train", str(folder), "--resume")
    assert outcome.code == 0, outcome.output
    assert f"after {done} steps" in outcome.output
    assert without_times(folder) == whole


def test_a_signal_to_a_single_rank_stops_all_of_them(tmp_path: Path) -> None:
    with start(tmp_path / "run") as running:
        assert running.wait_until(lambda: running.steps >= 1)
        running.ranks()[1].send_signal(signal.SIGUSR1)
        assert running.wait(120) == EXIT_STOPPED, running.output
    assert (tmp_path / "run/checkpoints/latest").read_text().startswith(f"step-{running.steps:06d} ")


def test_a_rollout_is_abandoned(tmp_path: Path) -> None:
    """One that takes far longer than the grace period, in its second step."""
    folder = tmp_path / "run"
    long = ("batch.prompts_per_step=512", "batch.samples_per_prompt=16", "batch.max_tokens_per_micro_batch=16384")
    with start(folder, *long, "checkpoint.grace_s=20", "control.kind=none") as running:
        assert running.wait_until(lambda: "step 2: generation begins" in running.log(), timeout=300)
        begin = time.monotonic()
        running.send(signal.SIGTERM)
        assert running.wait(120) == EXIT_STOPPED, running.output
        took = time.monotonic() - begin
    assert running.log().count("generated in") == 1, "the rollout was waited for"
    assert took < 20
    assert (folder / "checkpoints/latest").read_text().startswith("step-000001 ")


def test_before_the_first_step_is_done_there_is_nothing_to_save(tmp_path: Path, whole: list[dict[str, Any]]) -> None:
    folder = tmp_path / "run"
    with start(folder) as running:
        assert running.wait_until(lambda: "policy: " in running.log())
        running.send(signal.SIGTERM)
        code = running.wait(120)
    assert code == EXIT_STOPPED, running.output
    if not running.steps:
        assert "nothing was trained yet" in running.output or "asked to stop" in running.output
        assert not list(folder.glob("checkpoints/step-*"))
    assert megatron_entropic("train", str(folder), "--resume").code == 0
    assert without_times(folder) == whole


def test_a_checkpoint_of_this_very_step_is_not_written_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with start(folder, "checkpoint.every=1") as running:
        assert running.wait_until(lambda: running.steps >= 2)
        running.send(signal.SIGTERM)
        assert running.wait(120) == EXIT_STOPPED, running.output
    published = [line.split("checkpoint ")[1].split(" ")[0] for line in running.log().splitlines() if ": checkpoint /" in line]
    assert len(published) == len(set(published)) >= 2, published
    assert published[-1].endswith(f"step-{running.steps:06d}")


def test_a_second_signal_stops_at_once_without_saving(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    begun, slowly = slow_update(tmp_path)
    with start(folder, slowly) as running:
        assert running.wait_until(begun.exists)
        running.send(signal.SIGTERM)
        time.sleep(2.5)
        running.send(signal.SIGTERM)
        begin = time.monotonic()
        assert running.wait(120) == 128 + signal.SIGTERM, running.output
        assert time.monotonic() - begin < 20
    assert "ended by SIGTERM" in running.output
    assert not list(folder.glob("checkpoints/step-*"))


def test_a_run_that_cannot_save_within_the_grace_period_ends_without(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    begun, slowly = slow_update(tmp_path)
    with start(folder, slowly, "checkpoint.grace_s=1") as running:
        assert running.wait_until(begun.exists)
        running.send(signal.SIGUSR1)
        code = running.wait(120)
    assert code not in (0, EXIT_STOPPED), running.output
    assert "not done within checkpoint.grace_s=1 s: stopped without saving" in running.output
    assert not list(folder.glob("checkpoints/step-*"))


def test_the_first_ctrl_c_saves(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with start(folder, "parallel.tensor=1", "trainer.steps=1000") as running:
        assert running.wait_until(lambda: running.steps >= 1)
        running.send(signal.SIGINT)
        assert running.wait(120) == EXIT_STOPPED, running.output
    assert "SIGINT: the run saves and stops" in running.output
    assert f"resume with: megatron-entropic train {folder} --resume" in running.output
    assert (folder / "checkpoints/latest").read_text().startswith(f"step-{running.steps:06d} ")


def test_a_second_ctrl_c_ends_at_once_and_says_what_is_lost(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    begun, slowly = slow_update(tmp_path, quick=1)
    whole = "batch.max_tokens_per_micro_batch=8192"  # one micro-batch an update
    with start(folder, slowly, whole, "parallel.tensor=1", "trainer.steps=1000") as running:
        assert running.wait_until(begun.exists)
        assert running.steps == 1
        running.send(signal.SIGINT)
        time.sleep(0.5)
        running.send(signal.SIGINT)
        assert running.wait(120) == 128 + signal.SIGINT, running.output
    assert "ended by SIGINT" in running.output
    lost = f"{running.steps} steps are lost: there is no checkpoint yet; start over with: megatron-entropic train {folder} --resume"
    assert lost in running.output, running.output
    assert not list(folder.glob("checkpoints/step-*"))


@pytest.mark.parametrize(("signum", "ignored"), [(signal.SIGTERM, False), (signal.SIGINT, True)])
def test_a_signal_while_the_ranks_still_import_is_not_lost(tmp_path: Path, signum: signal.Signals, ignored: bool) -> None:
    """Also where SIGINT is ignored, as in a shell script's background jobs."""
    folder = tmp_path / "run"
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) if ignored else signal.getsignal(signal.SIGINT)
    try:
        running = start(folder, "parallel.tensor=1", "trainer.steps=1000")
    finally:
        signal.signal(signal.SIGINT, before)
    with running:
        assert running.wait_until(lambda: running.ranks())
        running.send(signum)
        assert running.wait(120) == EXIT_STOPPED, running.output
    assert "Traceback" not in running.output
    assert not running.steps


def test_a_lost_terminal_does_not_keep_a_run_from_saving(tmp_path: Path) -> None:
    """SIGHUP and a terminal that takes no more output come together."""
    folder = tmp_path / "run"
    settings = [*SETTINGS, "parallel.tensor=1", "trainer.steps=1000", f"run.dir={folder}"]
    script = f"exec {sys.executable} -m megatron_entropic.cli train quickstart {' '.join(settings)}"
    pid, terminal = pty.fork()
    if not pid:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also when the suite itself runs under nohup
        os.chdir(ROOT)
        os.execvp("sh", ["sh", "-c", script])
    try:
        metrics = folder / "metrics.jsonl"
        read_until(terminal, lambda: metrics.exists() and metrics.read_bytes().count(b"\n") >= 2)
        os.close(terminal)  # the kernel sends SIGHUP
        _, status = os.waitpid(pid, 0)
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        raise
    assert os.waitstatus_to_exitcode(status) == EXIT_STOPPED
    steps = metrics.read_bytes().count(b"\n")
    assert (folder / "checkpoints/latest").read_text().startswith(f"step-{steps:06d} ")


def read_until(terminal: int, true: Callable[[], bool], timeout: float = 120.0) -> None:
    deadline = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < deadline
        if select.select([terminal], [], [], 0.05)[0]:
            os.read(terminal, 65536)
