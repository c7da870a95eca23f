"""Where no namespaces are allowed and the user asks for it: limits and refused system calls, which is less, and said so."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_entropic.tasks.sandbox import ALONE, Sandbox, SandboxCase, SandboxError, SandboxLimits, best_mechanism, mechanism
from tests.command_line import ROOT

LIMITS = SandboxLimits(cpu_s=1, wall_s=60.0, memory_bytes=2**28, output_bytes=2**16)


@pytest.fixture
def without_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mechanism, "namespaces_refused", lambda: "unshare: Operation not permitted")


@pytest.mark.usefixtures("without_namespaces")
def test_it_is_used_only_when_asked_for_and_the_refusal_says_why() -> None:
    with pytest.raises(
        SandboxError, match=r"cannot be kept in a sandbox here: unshare: Operation not permitted.*allow_unsandboxed=true"
    ):
        best_mechanism()
    assert best_mechanism(allow_unsandboxed=True) == ALONE
    assert mechanism.described().startswith("refused: unshare")


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        ("echo 0 > /proc/sys/user/max_user_namespaces", "unshare: No space left on device; user.max_user_namespaces"),
        ("true", "the kernel does not count the processes of root"),
    ],
)
def test_a_machine_that_refuses_is_named_with_the_kernels_reason(before: str, reason: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, whose processes the kernel does not count")
    script = "from megatron_entropic.tasks.sandbox import *\nprint(described(), best_mechanism(allow_unsandboxed=True).alone)"
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "sh", "-c", f'{before}; exec "$0" -c "$1"', sys.executable, script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("refused: ")
    assert reason in done.stdout
    assert done.stdout.endswith("True\n")


def test_namespaces_are_taken_where_they_are_even_if_less_is_allowed() -> None:
    assert not best_mechanism(allow_unsandboxed=True).alone


@pytest.mark.parametrize(
    "statement",
    [
        "os.fork()",
        "os.posix_spawn('/bin/true', ['true'], {})",
        "os.execv('/bin/true', ['true'])",
        "os.kill(os.getppid(), 0)",
        "os.killpg(0, 0)",
        "open('FOLDER/file', 'a')",
        "open('FOLDER/new', 'w')",
        "os.truncate('FOLDER/file', 0)",
        "os.unlink('FOLDER/file')",
        "os.rename('FOLDER/file', 'FOLDER/x')",
        "os.mkdir('FOLDER/x')",
        "os.symlink('a', 'FOLDER/x')",
        "os.chmod('FOLDER/file', 0)",
        "socket.create_connection(('127.0.0.1', PORT))",
    ],
)
def test_processes_files_signals_and_connections_are_refused(statement: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("whole")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        statement = statement.replace("FOLDER", str(tmp_path)).replace("PORT", str(server.getsockname()[1]))
        with Sandbox(f"import os, socket\n{statement}", LIMITS, ALONE) as sandbox:
            result = sandbox.run(SandboxCase())
        with pytest.raises(BlockingIOError):
            server.accept()
    assert "PermissionError" in result.errors
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "whole"


def test_limits_and_threads_work() -> None:
    with Sandbox("while True: pass", LIMITS, ALONE) as sandbox:
        assert sandbox.run(SandboxCase()).ended == "cpu"
    with Sandbox(
        "import threading\nt = threading.Thread(target=print, args=(input(),)); t.start(); t.join()", LIMITS, ALONE
    ) as sandbox:
        assert sandbox.run(SandboxCase(input="said")).output == "said\n"
        first = sandbox._process
        assert first is not None
    with pytest.raises(ProcessLookupError):
        os.kill(first.pid, 0)
