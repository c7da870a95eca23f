"""Servers that die: while starting, while generating, and with their owner. None may leave a process behind."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from megatron_entropic.rollout.types import Prompt, RolloutError
from megatron_entropic.rollout.vllm.server import GRACE_S
from tests.rollout.vllm.vllm_world import becomes_true, fleet_of, group_members, kill_group, write_model

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

OWNER = """
import sys, time
from pathlib import Path
from tests.rollout.vllm.vllm_world import fleet_of
fleet = fleet_of(Path(sys.argv[1]), Path(sys.argv[2]))
fleet.start()
print(fleet.servers[0].pid, flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


def test_a_server_that_dies_at_start_up_tells_why(model_dir: Path, tmp_path: Path) -> None:
    fleet = fleet_of(model_dir, tmp_path, server_args=("--no-such-argument",))
    fleet.launch()
    group = fleet.servers[0].pid
    assert group
    with pytest.raises(
        RolloutError, match=r"(?s)rollout server 0 .*exit code 2.* died while starting.*vllm_0\.log.*--no-such-argument"
    ):
        fleet.start()
    assert not group_members(group)


def test_a_server_that_is_too_slow_is_ended(model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = Path(tempfile.mkdtemp(prefix="o", dir="/tmp"))  # short, so that it is used
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    fleet = fleet_of(model_dir, tmp_path, startup_timeout_s=0.5)
    fleet.launch()
    group = fleet.servers[0].pid
    assert group
    with pytest.raises(RolloutError, match=r"rollout server 0 .*not ready after 0\.5 s \(rollout\.startup_timeout_s\)"):
        fleet.start()
    assert not group_members(group)
    scratch.rmdir()  # and so empty


def test_hung_servers_are_ended_together(model_dir: Path, tmp_path: Path) -> None:
    """Not one after the other: a run that is to end at once has less time than several of them would take."""
    fleet = fleet_of(model_dir, tmp_path, servers=3)
    fleet.launch()
    groups = [server.pid for server in fleet.servers]
    for group in groups:
        kill_group(group, signal.SIGSTOP)
    begin = time.monotonic()
    fleet.close()
    assert time.monotonic() - begin < 1.5 * GRACE_S
    assert not any(group_members(group) for group in groups)


def test_a_server_killed_while_generating_is_named_and_takes_its_engine_along(model_dir: Path, tmp_path: Path) -> None:
    fleet = fleet_of(model_dir, tmp_path, max_new_tokens=480, server_args=("--max-num-seqs", "2"))
    try:
        fleet.start()
        server = fleet.servers[0]
        assert server.pid
        assert len(group_members(server.pid)) >= 2
        killer = threading.Timer(2.0, os.kill, (server.pid, signal.SIGKILL))  # the front end only
        killer.start()
        with pytest.raises(RolloutError, match=rf"rollout server 0 \({server.url}, pid {server.pid}, exit code -9\).*vllm_0\.log"):
            fleet.generate([Prompt(index, "", (5, 6, 7)) for index in range(400)], 2)
        killer.join()
        assert becomes_true(lambda: not group_members(server.pid or 0), 10.0)
    finally:
        fleet.close()


def test_nothing_survives_an_owner_that_is_killed(model_dir: Path, tmp_path: Path) -> None:
    repository = str(Path(__file__).resolve().parents[3])
    scratch = Path(tempfile.mkdtemp(prefix="o", dir="/tmp"))  # short, so that it is used
    environment = os.environ | {"PYTHONPATH": repository, "TMPDIR": str(scratch)}
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(model_dir), str(tmp_path)], env=environment, stdout=subprocess.PIPE, text=True
    )
    group = 0
    try:
        assert owner.stdout
        group = int(owner.stdout.readline())
        assert len(group_members(group)) >= 2
        owner.kill()
        owner.wait()
        assert becomes_true(lambda: not group_members(group), 20.0), group_members(group)
        assert not list(scratch.iterdir()), "nor a folder"
    finally:
        owner.kill()
        owner.wait()
        if group:
            kill_group(group, signal.SIGKILL)
        shutil.rmtree(scratch)
