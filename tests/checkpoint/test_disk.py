"""A disk that is full or read-only ends the run with one error that names the path, and the checkpoint before it still loads."""

import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.command_line import megatron_entropic
from tests.running import Running
from tests.trainer.test_signals import SETTINGS

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


def mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own (in memory, 12 MB: one checkpoint and a half) at the run's checkpoints/."""
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    mount("-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder))
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def train_until_it_fails(folder: Path, after_first_checkpoint: Callable[[], object] = lambda: None) -> Running:
    with Running(folder, "train", "quickstart", *SETTINGS, "checkpoint.every=2", f"run.dir={folder}") as running:
        running.wait_until((folder / "checkpoints" / "latest").exists)
        after_first_checkpoint()
        assert running.wait(120) == 1, running.output
    assert "Traceback" not in running.output
    errors = re.findall(r"\[rank \d\] error: .*", running.output)
    assert len(errors) == 1, running.output
    assert str(folder / "checkpoints") in errors[0]
    assert "those before it hold" in errors[0]
    assert (folder / "checkpoints" / "latest").read_text().startswith("step-000002 ")
    return running


def resume(folder: Path) -> None:
    outcome = megatron_entropic("train", str(folder), "--resume")
    assert outcome.code == 0, outcome.output
    assert "after 2 steps" in outcome.output
    assert (folder / "checkpoints" / "latest").read_text().startswith("step-000006 ")


def test_a_full_disk(disk: Path) -> None:
    running = train_until_it_fails(disk.parent)
    assert "No space left on device" in running.output or "0 GB free there" in running.output
    assert not list(disk.glob(".step-*")), "what could not be finished only takes space"
    mount("-o", "remount,size=100m", str(disk))
    resume(disk.parent)


def test_a_disk_that_becomes_read_only(disk: Path) -> None:
    mount("-o", "remount,size=100m", str(disk))

    def make_read_only() -> None:
        deadline = time.monotonic() + 60  # refused while a file is open for writing
        while subprocess.run(["mount", "-o", "remount,ro", str(disk)], capture_output=True, check=False).returncode:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    running = train_until_it_fails(disk.parent, make_read_only)
    assert "Read-only file system" in running.output
    mount("-o", "remount,rw", str(disk))
    resume(disk.parent)
