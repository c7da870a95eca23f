"""Servers found through a folder: announced, missing, damaged, ended."""

import stat
from pathlib import Path

import pytest

from megatron_entropic.config import RolloutConfig
from megatron_entropic.rollout.remote_server import RemoteServer, announce, announce_end, find_servers, open_folder
from megatron_entropic.rollout.server import VLLMServer
from megatron_entropic.rollout.types import RolloutError


def owned(index: int, folder: Path) -> VLLMServer:
    return VLLMServer(
        RolloutConfig(), index, port=8000 + index, model_dir=Path("m"), dtype="float32", max_model_len=64, seed=3, log_dir=folder
    )


def test_an_announced_server_is_the_one_that_was_started(tmp_path: Path) -> None:
    folder = open_folder(tmp_path / "runs" / "fleet")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700, "its files hold keys"
    for index in (1, 0):
        announce(folder, owned(index, tmp_path), pid=77)
    first, second = find_servers(folder, 2, timeout_s=1.0)
    assert (first.url, second.url) == ("http://127.0.0.1:8000", "http://127.0.0.1:8001")
    assert (first.name, second.host) == ("vllm_0", "127.0.0.1")
    assert first.key != second.key
    assert first.exit_code() is None
    assert "pid 77 on " in str(first)


def test_a_server_that_ended_is_named_with_its_exit_code(tmp_path: Path) -> None:
    server = owned(0, tmp_path)
    announce(tmp_path, server, pid=77)
    remote = RemoteServer(tmp_path, 0)
    (tmp_path / "vllm_0.log").write_text("ValueError: no such device\n")
    announce_end(tmp_path, server, -9)
    with pytest.raises(RolloutError, match=r"(?s)rollout server 0 .*exit code -9\) died while starting.*no such device"):
        remote.wait_ready(5.0)
    announce(tmp_path, server, pid=78)  # started again
    assert RemoteServer(tmp_path, 0).exit_code() is None


def test_servers_that_never_come_are_named(tmp_path: Path) -> None:
    announce(tmp_path, owned(1, tmp_path), pid=77)
    with pytest.raises(RolloutError, match=r"rollout servers 0, 2 of 3 were not announced in .*within 0\.3 s.*startup_timeout_s"):
        find_servers(tmp_path, 3, timeout_s=0.3)


def test_a_damaged_announcement_is_named(tmp_path: Path) -> None:
    (tmp_path / "server-0.json").write_text('{"url": "http://h:1"}')
    with pytest.raises(RolloutError, match=r"server-0\.json is no announcement .*key"):
        RemoteServer(tmp_path, 0)
