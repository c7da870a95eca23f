"""Temporary folders in which sockets fit, whatever TMPDIR is."""

import socket
import tempfile
import uuid
from pathlib import Path

import pytest

from megatron_entropic.system import scratch
from megatron_entropic.system.scratch import scratch_folder


def test_a_short_folder_is_used_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        monkeypatch.setattr("tempfile.tempdir", short)
        with scratch_folder("vllm_0_") as made:
            assert Path(made).parent == Path(short)
        assert not Path(made).exists()


def test_sockets_fit_where_tmpdir_is_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 200)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    with scratch_folder("vllm_1234_") as made, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{made}/{uuid.uuid4()}")


def test_where_no_short_folder_can_be_written_the_error_says_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    monkeypatch.setattr(scratch, "_SHORT", ("/nowhere",))
    with pytest.raises(OSError, match=r"path of at most \d+ bytes.*x{100}.*set TMPDIR to a short path"):
        scratch_folder("vllm_0_")
