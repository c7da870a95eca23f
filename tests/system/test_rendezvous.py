"""Ranks meet on ports that are bound, not guessed: two steps of one job at one time, strangers on a port, ranks that never come."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_entropic.system.rendezvous import LISTENER_VARIABLE, listen, reserve
from tests.command_line import ROOT

RANK = """
import os, sys
from pathlib import Path
from megatron_entropic.errors import ReportedError
from megatron_entropic.system.rendezvous import open_store
rank = int(os.environ["RANK"])
try:
    store = open_store(rank, 2, float(sys.argv[2]), Path(sys.argv[1]))
    if rank:
        print(store.get("who").decode())
    else:
        store.set("who", sys.argv[1])
        store.get("seen")
    store.set("seen", "yes")
except ReportedError as error:
    print("refused:", error)
"""


def ranks(folder: Path, timeout_s: float = 20.0, only: tuple[int, ...] = (1, 0), **environ: str) -> list[subprocess.Popen[str]]:
    """Two ranks as srun starts them: nothing but their numbers and the first node's name."""
    folder.mkdir(exist_ok=True)
    clean = {name: value for name, value in os.environ.items() if name not in ("MASTER_PORT", "RANK", "WORLD_SIZE")}
    return [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(folder), str(timeout_s)],
            cwd=ROOT,
            env={**clean, "RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", **environ},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in only
    ]


def outputs(*processes: subprocess.Popen[str]) -> list[str]:
    return [process.communicate(timeout=120)[0].strip() for process in processes]


def test_two_steps_of_one_job_meet_apart(tmp_path: Path) -> None:
    steps = [ranks(tmp_path / f"run{step}", SLURM_STEP_ID=str(step)) for step in (1, 2)]
    for step, processes in zip((1, 2), steps, strict=True):
        assert outputs(*processes) == [str(tmp_path / f"run{step}"), ""]


def test_where_an_earlier_start_met_is_not_taken_for_this_ones(tmp_path: Path) -> None:
    with listen("127.0.0.1") as stranger:
        meeting = {"step": "7.0.0", "port": stranger.getsockname()[1]}
        (tmp_path / ".meeting.json").write_text(json.dumps(meeting))
        assert outputs(*ranks(tmp_path, SLURM_RESTART_COUNT="1")) == [str(tmp_path), ""]


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with listen("") as stranger:
        port = str(stranger.getsockname()[1])
        refused = outputs(*ranks(tmp_path, only=(0,), MASTER_PORT=port))[0]
    assert f"refused: MASTER_PORT={port} cannot be used on {socket.gethostname()}: Address already in use; another" in refused


def test_the_store_of_another_step_is_named(tmp_path: Path) -> None:
    with listen("127.0.0.1") as listener:
        port = listener.getsockname()[1]
    own = ranks(tmp_path, only=(0,), MASTER_PORT=str(port))[0]
    try:
        refused = outputs(*ranks(tmp_path, only=(1,), MASTER_PORT=str(port), SLURM_STEP_ID="3"))[0]
    finally:
        own.kill()
        own.communicate()
    assert refused == f"refused: 127.0.0.1:{port} is the rendezvous of step 7.0.0, not of step 7.0.3: set another MASTER_PORT"


def test_a_rank_zero_that_never_comes_is_named(tmp_path: Path) -> None:
    refused = outputs(*ranks(tmp_path, timeout_s=0.5, only=(1,)))[0]
    assert refused.startswith(f"refused: rank 0 wrote no rendezvous to {tmp_path}/.meeting.json within 0.5 s (parallel.timeout_s)")


def test_an_inherited_socket_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron_entropic.system.rendezvous import open_store

    listener = listen("127.0.0.1")
    port = listener.getsockname()[1]
    for name, value in (("MASTER_ADDR", "127.0.0.1"), (LISTENER_VARIABLE, str(listener.detach())), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    assert open_store(0, 2, 5.0).port == port


def test_a_reserved_port_is_for_who_knows_of_it() -> None:
    """A server that is told the port can listen on it; a client's connection, or a program that wants any port, does not get it."""
    with reserve("127.0.0.1") as reserved, socket.socket() as unaware:
        address = reserved.getsockname()
        with pytest.raises(OSError, match="in use"):
            unaware.bind(address)
        with socket.create_server(address), socket.create_connection(address):
            pass
