"""Signals on their way from the batch script to the ranks, through an srun that does what SLURM's does with them."""

import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from slurm import steps
from slurm.allocation import Allocation, Group
from slurm.launch import parser
from slurm.split import Description, NodeSplit
from slurm.train_job import TrainJob

NODES = Group(("n1",), 4, 0, None)
SRUN = """#!{python}
import signal, sys, time
heard = []
deadline = time.monotonic() + 20
for signum in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(signum, lambda signum, frame: heard.append(signal.Signals(signum).name))
open("{folder}/started", "w").close()
while not __import__("os").path.exists("{folder}/tasks_run") and "SIGTERM" not in heard and time.monotonic() < deadline:
    time.sleep(0.01)
heard = [name for name in heard if name == "SIGTERM"]  # its tasks do not run yet: what it should pass on is dropped
print("0: a rank speaks", flush=True)
while not heard and time.monotonic() < deadline:
    time.sleep(0.01)
time.sleep(0.5)  # for one too many
print("0: heard", *heard, flush=True)
sys.exit(75 if heard else 0)
"""


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainJob:
    srun = tmp_path / "srun"
    srun.write_text(SRUN.format(python=sys.executable, folder=tmp_path))
    srun.chmod(0o755)
    ordinary = steps.srun_command
    monkeypatch.setattr(steps, "srun_command", lambda *request: [str(srun), *ordinary(*request)[1:]])
    monkeypatch.setattr("slurm.train_job.can_bind", lambda: False)
    return TrainJob(parser().parse_args(["train", "quickstart"]), Allocation("7", 0, None, (NODES,)), "n1", 29500)


def train(start: TrainJob, tmp_path: Path) -> int:
    run = Description(str(tmp_path / "run"), False, [], 1, False, 0, 0, "m", 1)
    return start._train(run, NodeSplit(NODES, 1, None))


def when_started(tmp_path: Path, *then: object) -> None:
    while not (tmp_path / "started").exists():
        time.sleep(0.01)
    for do in then:
        do()  # type: ignore[operator]


@pytest.mark.parametrize("early", [True, False])
def test_ranks_get_a_signal_once_whenever_it_came(
    early: bool, start: TrainJob, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Before srun runs its tasks it drops signals; one that the launcher got then is passed on as soon as they run."""
    run_tasks = (tmp_path / "tasks_run").touch

    def send() -> None:
        start.pass_on(signal.SIGUSR1)

    def wait_for_ranks() -> None:
        assert start._ranks is not None
        start._ranks.spoke.wait(20)

    do = (send, lambda: time.sleep(0.5), run_tasks) if early else (run_tasks, wait_for_ranks, send)
    threading.Thread(target=when_started, args=(tmp_path, *do), daemon=True).start()
    assert train(start, tmp_path) == 75
    said = capfd.readouterr().out
    assert "[rank 0 n1] heard SIGUSR1\n" in said
    assert ("got SIGUSR1: the ranks get it as soon as they run" in said) is early


def test_sigterm_is_not_kept_back(start: TrainJob, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """srun itself acts on it; a stop that was asked for before does not hold it up."""
    do = (lambda: start.pass_on(signal.SIGUSR1), lambda: start.pass_on(signal.SIGTERM))
    threading.Thread(target=when_started, args=(tmp_path, *do), daemon=True).start()
    train(start, tmp_path)
    assert "[rank 0 n1] heard SIGTERM\n" in capfd.readouterr().out
