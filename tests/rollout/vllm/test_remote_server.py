"""Servers found through a folder: announced, missing, damaged, ended."""

import json
import os
import stat
import subprocess
from pathlib import Path

import pytest

from megatron_entropic.config import RolloutConfig
from megatron_entropic.rollout.types import RolloutError
from megatron_entropic.rollout.vllm.remote_server import (
    ENDED_LATELY_S,
    RemoteServer,
    announce,
    announce_end,
    check_unannounced,
    find_servers,
    open_folder,
    still_there,
    trainer_lock,
    withdraw,
)
from megatron_entropic.rollout.vllm.server import VLLMServer
from megatron_entropic.system.folder_lock import LEASE_S, FolderOwnedError
from megatron_entropic.system.process_identity import ProcessIdentity
from megatron_entropic.system.rendezvous import listen


def owned(index: int, folder: Path) -> VLLMServer:
    listener = listen("127.0.0.1")
    return VLLMServer(
        RolloutConfig(), index, listener=listener, model_dir=Path("m"), dtype="float32", max_model_len=64, seed=3, log_dir=folder
    )


def test_an_announced_server_is_the_one_that_was_started(tmp_path: Path) -> None:
    folder = open_folder(tmp_path / "runs" / "fleet")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700, "its files hold keys"
    servers = [owned(index, tmp_path) for index in range(2)]
    for server in reversed(servers):
        announce(folder, server, pid=77)
    first, second = find_servers(folder, 2, timeout_s=1.0)
    assert (first.url, second.url) == (servers[0].url, servers[1].url)
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
    with pytest.raises(RolloutError, match=r"server-0\.json is no announcement .*KeyError"):
        RemoteServer(tmp_path, 0)


def of_another(folder: Path, index: int, **fields: object) -> Path:
    """Makes another process the owner of an announced server."""
    path = folder / f"server-{index}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return path


def test_an_announcement_whose_owner_was_killed_is_dropped(tmp_path: Path) -> None:
    announce(tmp_path, owned(0, tmp_path), pid=77)
    process = subprocess.Popen(["true"])
    process.wait()
    of_another(tmp_path, 0, pid=process.pid, since="yesterday")
    with pytest.raises(RolloutError, match=rf"servers 0 of 1 were not .*server-0\.json is stale: pid {process.pid} on .* ended"):
        find_servers(tmp_path, 1, timeout_s=0.1)
    check_unannounced(tmp_path, [0])


def test_an_owner_elsewhere_has_to_give_signs_of_life(tmp_path: Path) -> None:
    server = owned(0, tmp_path)
    announce(tmp_path, server, pid=77)
    path = of_another(tmp_path, 0, host="n7", boot="another")
    assert find_servers(tmp_path, 1, timeout_s=0.1)[0].location() == "pid 77 on n7"
    long_ago = path.stat().st_mtime - LEASE_S - 5
    os.utime(path, (long_ago, long_ago))
    with pytest.raises(RolloutError, match=r"on n7, since .* gave no sign of life for 6\d s"):
        find_servers(tmp_path, 1, timeout_s=0.1)
    still_there(tmp_path, server)
    assert find_servers(tmp_path, 1, timeout_s=0.1)


def test_a_second_owner_of_a_server_is_refused_and_withdraws_nothing(tmp_path: Path) -> None:
    first, second = owned(0, tmp_path), owned(0, tmp_path)
    announce(tmp_path, first, pid=77)
    with pytest.raises(RolloutError, match=rf"server 0 is announced there already, by pid {os.getpid()} on .*--share"):
        check_unannounced(tmp_path, [0])
    withdraw(tmp_path, second)
    assert find_servers(tmp_path, 1, timeout_s=0.1)[0].key == first.key
    withdraw(tmp_path, first)
    assert not (tmp_path / "server-0.json").exists()


def test_a_fleet_has_one_trainer(tmp_path: Path) -> None:
    with trainer_lock(tmp_path / "fleet"), pytest.raises(FolderOwnedError, match=rf"the fleet is in use by pid {os.getpid()} on "):
        trainer_lock(tmp_path / "fleet").acquire()
    assert stat.S_IMODE((tmp_path / "fleet").stat().st_mode) == 0o700


def test_an_announcement_names_the_process_that_wrote_it(tmp_path: Path) -> None:
    announce(tmp_path, owned(0, tmp_path), pid=77)
    found = ProcessIdentity.from_fields(json.loads((tmp_path / "server-0.json").read_text()))
    assert found.is_alive()
    assert found.pid == os.getpid()


def test_a_server_that_ended_before_the_trainer_looked_is_named_for_a_while(tmp_path: Path) -> None:
    server = owned(0, tmp_path)
    announce(tmp_path, server, pid=77)
    announce_end(tmp_path, server, -9)
    withdraw(tmp_path, server)
    process = subprocess.Popen(["true"])
    process.wait()
    of_another(tmp_path, 0, pid=process.pid)
    assert find_servers(tmp_path, 1, timeout_s=0.1)[0].exit_code() == -9
    long_ago = (tmp_path / "server-0.exit").stat().st_mtime - ENDED_LATELY_S - 5
    os.utime(tmp_path / "server-0.exit", (long_ago, long_ago))
    with pytest.raises(RolloutError, match="were not announced"):
        find_servers(tmp_path, 1, timeout_s=0.1)
