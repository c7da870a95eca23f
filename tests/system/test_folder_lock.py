"""One owner of a folder: refused while it lives, free when it died, taken over by generation, fenced off forever after."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from megatron_entropic.system import folder_lock
from megatron_entropic.system.folder_lock import Fence, FolderLock, FolderOwnedError, read_owner

OWNER = """
import sys, time
from pathlib import Path
from megatron_entropic.system.folder_lock import FolderLock
lock = FolderLock(Path(sys.argv[1]), "the run")
lock.acquire()
if len(sys.argv) > 2:
    import subprocess
    child = subprocess.Popen(["sleep", sys.argv[2]], pass_fds=[lock.descriptor])
    print(child.pid, flush=True)
print("owns", flush=True)
time.sleep(60)
"""


@contextmanager
def owner_of(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that owns the folder."""
    process = subprocess.Popen([sys.executable, "-c", OWNER, str(folder), *arguments], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        while process.stdout.readline().strip() != "owns":
            assert process.poll() is None
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_living_owner_is_named_and_a_dead_ones_folder_is_free_at_once(tmp_path: Path) -> None:
    with owner_of(tmp_path) as other:
        since = json.loads((tmp_path / ".owner.json").read_text())["since"]
        with pytest.raises(
            FolderOwnedError, match=rf"the run is in use by pid {other.pid} on {os.uname().nodename}, since {re.escape(since)}"
        ):
            FolderLock(tmp_path, "the run").acquire()
        other.send_signal(signal.SIGKILL)
        other.wait()
        begin = time.monotonic()
        with FolderLock(tmp_path, "the run") as lock:
            assert lock.token.startswith("2-")
        assert time.monotonic() - begin < 2
    owner = read_owner(tmp_path)
    assert owner is not None
    assert not owner.held


def test_a_refused_owner_changes_nothing(tmp_path: Path) -> None:
    with FolderLock(tmp_path, "the run") as lock:
        before = (tmp_path / ".owner.json").read_bytes()
        with pytest.raises(FolderOwnedError):
            FolderLock(tmp_path, "the run").acquire()
        assert (tmp_path / ".owner.json").read_bytes() == before
        Fence(tmp_path, lock.token).check()


def test_what_a_killed_owner_left_running_is_waited_for(tmp_path: Path) -> None:
    """Ranks inherit the lock: they may still write while they end."""
    with owner_of(tmp_path, "2") as other:
        other.kill()
        other.wait()
        begin = time.monotonic()
        with FolderLock(tmp_path, "the run"):
            assert 0.5 < time.monotonic() - begin < 20


def elsewhere(folder: Path, **fields: object) -> None:
    """Makes the folder's owner a process of another machine."""
    path = folder / ".owner.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"host": "n7", "boot": "another", "held": True} | fields))


@pytest.fixture
def left(tmp_path: Path) -> Path:
    with FolderLock(tmp_path, "the run"):
        pass
    return tmp_path


def test_an_owner_elsewhere_is_given_up_when_its_lease_ends(left: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_lock, "LEASE_S", 2.0)
    elsewhere(left)
    begin = time.monotonic()
    with FolderLock(left, "the run") as lock:
        assert 1 < time.monotonic() - begin < 20
        assert lock.token.startswith("2-")


def test_an_owner_elsewhere_that_gives_a_sign_of_life_is_named(left: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_lock, "LEASE_S", 5.0)
    elsewhere(left, pid=77)
    beat = subprocess.Popen(["sh", "-c", f"sleep 1; touch {left}/.owner.json"])
    with pytest.raises(FolderOwnedError, match=r"in use by pid 77 on n7, since .*free 5 s after its last sign of life"):
        FolderLock(left, "the run").acquire()
    beat.wait()


def test_a_requeued_job_takes_over_without_waiting(left: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere(left, job="123", job_start=0)
    monkeypatch.setenv("SLURM_JOB_ID", "123")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    begin = time.monotonic()
    with FolderLock(left, "the run"):
        assert time.monotonic() - begin < 2


def test_an_owner_that_was_given_up_is_fenced_off(left: Path) -> None:
    with FolderLock(left, "the run") as old:
        fence = Fence(left, old.token)
        fence.check()
        elsewhere(left, pid=5, generation=9, token="9-other")
        with pytest.raises(FolderOwnedError, match=r"taken over by pid 5 on n7.*writes nothing more"):
            fence.check()
    owner = read_owner(left)
    assert owner is not None
    assert owner.token == "9-other", "and releases nothing that is another's"
    assert owner.held


def test_where_there_are_no_locks_the_record_decides(left: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_lock, "_lock", lambda descriptor: None)
    monkeypatch.setattr(folder_lock, "_SETTLE_S", 0.1)
    with owner_of(left) as other, pytest.raises(FolderOwnedError, match=rf"pid {other.pid} on "):
        FolderLock(left, "the run").acquire()
    with FolderLock(left, "the run") as lock:
        Fence(left, lock.token).check()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        FolderLock(tmp_path / "file" / "run", "the run").acquire()


def test_a_damaged_record_is_named(left: Path) -> None:
    (left / ".owner.json").write_text('{"host": 1}')
    with pytest.raises(FolderOwnedError, match=r"\.owner\.json does not say who owns the folder"):
        FolderLock(left, "the run").acquire()
