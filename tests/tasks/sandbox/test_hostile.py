"""Programs that want out, or want everything: each is ended, says so, and leaves nothing. The real mechanism, no stand-in."""

import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_entropic.tasks.sandbox import NAMESPACES, CaseResult, Sandbox, SandboxCase, SandboxLimits, best_mechanism
from tests.command_line import ROOT
from tests.tasks.sandbox.namespaces import empty_soon, first_process, members, namespace

LIMITS = SandboxLimits(cpu_s=1, wall_s=60.0, memory_bytes=2**28, disk_bytes=2**22, output_bytes=2**16)
SOON = replace(LIMITS, wall_s=0.7)
"""For what waits for ever, or does what takes no CPU time of one process."""
STILL_THERE = SandboxCase("expression", code="6 * 7")


def run(program: str, limits: SandboxLimits = LIMITS) -> CaseResult:
    """The result of a program, after which the sandbox was empty and still answered, and then was gone."""
    with Sandbox(program, limits, NAMESPACES) as sandbox:
        first = first_process(sandbox)
        inside = namespace(first.pid)
        result = sandbox.run(SandboxCase())
        assert members(inside) == [first.pid]
    assert empty_soon(inside)
    return result


def refused(program: str) -> str:
    """What Python says of the error that ends a program."""
    result = run(program)
    assert (result.ended, result.code) == ("ended", 1), result
    return result.errors.splitlines()[-1]


def test_this_machine_has_namespaces_and_the_sandbox_uses_them() -> None:
    assert best_mechanism() == NAMESPACES
    with Sandbox("", LIMITS, NAMESPACES) as sandbox:
        first = first_process(sandbox).pid
        for kind in ("user", "pid", "net", "mnt", "ipc", "uts"):
            assert namespace(first, kind) != namespace(os.getpid(), kind)


@pytest.mark.parametrize(
    ("program", "ended"),
    [
        ("import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass", "wall"),
        ("import os\nwhile os.fork() >= 0:\n    os.setsid()", "ended"),  # one that fails where it may make no more
        ("import time; time.sleep(1000)", "wall"),
        ("import signal\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n    except (OSError, ValueError): pass\n"
         "while True: pass", "cpu"),
        ("import sys\nwhile True: sys.stdout.write('x' * 2**20)", "output"),
        ("import os\nwhile True: os.write(3, b'x' * 2**16)", "output"),
        ("import sys\nfor _ in range(1024): sys.stderr.write('x' * 2**20)", "ended"),  # a gigabyte of it, of which the end is kept
        ("x = bytearray(2**30)", "ended"),
        ("import threading, time\nfor _ in range(1000): threading.Thread(target=time.sleep, args=(1000,)).start()", "wall"),
        ("import os\nos.kill(os.getpid(), 9)", "ended"),
        ("import ctypes\nctypes.string_at(0)", "ended"),
    ],
)  # fmt: skip
def test_what_takes_too_much_ends_at_its_limit(program: str, ended: str) -> None:
    patient = dataclasses.replace(LIMITS, cpu_s=10 * LIMITS.cpu_s)
    result = run(program, SOON if ended == "wall" else patient if "1024" in program else LIMITS)
    assert result.ended == ended
    assert result.code != 0 or "1024" in program
    assert len(result.errors) <= 2000
    assert result.output == ""


def test_a_grandchild_that_hides_dies_with_the_case() -> None:
    result = run(
        "import os, time\n"
        "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        os.close(1); os.close(2)\n        time.sleep(1000)\n"
        "    os._exit(0)\n"
        "os.wait(); print('left')"
    )
    assert (result.ended, result.output) == ("ended", "left\n")


def test_its_parent_and_the_first_process_survive_signals_and_changes_of_limits() -> None:
    program = (
        "import os, signal, resource\n"
        "for pid in (os.getppid(), 1, -1):\n"
        "    for number in (9, 15, 19):\n"
        "        try: os.kill(pid, number)\n"
        "        except OSError as error: print(type(error).__name__)\n"
        "try: resource.prlimit(1, resource.RLIMIT_CPU, (1, 1))\n"
        "except OSError as error: print(type(error).__name__)\n"
    )
    with Sandbox(program, LIMITS, NAMESPACES) as sandbox:
        assert set(sandbox.run(SandboxCase()).output.split()) <= {"PermissionError", "ProcessLookupError"}
        assert sandbox.run(STILL_THERE).value == "42"


def test_a_server_on_loopback_sees_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        server.setblocking(False)
        local.bind("\0megatron_entropic_sandbox_test")
        local.listen()
        port = server.getsockname()[1]
        assert "PermissionError" in refused(f"import socket; socket.create_connection(('127.0.0.1', {port}))")
        assert "PermissionError" in refused("import socket; socket.socket(socket.AF_UNIX).connect('\\0megatron_entropic_sandbox_test')")
        with pytest.raises(BlockingIOError):
            server.accept()


def test_the_run_folder_secrets_and_other_processes_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "rollouts").write_text("secret")
    paths = [tmp_path / "rollouts", "/etc/shadow", "/etc/passwd", "/root", Path.home() / ".bashrc", ROOT, "/work", "/proc", "/sys"]
    paths += [f"/proc/{pid}/environ" for pid in (1, os.getpid(), "self")]
    program = (
        f"import os\nfor path in {[str(path) for path in paths]!r}:\n    print(os.path.lexists(path) and not path.startswith('/root'))"
    )
    assert set(run(program).output.split()) == {"False"}
    assert run("import os; print(sorted(os.environ), os.listdir('/root') if os.path.exists('/root') else [])").output.startswith(
        "['LANG', 'PATH'] "
    )
    links = "import os\nos.symlink('/../../../etc/shadow', 'a'); os.symlink('/proc/1/root/etc/shadow', 'b')\n"
    for link in "ab":
        assert "FileNotFoundError" in refused(f"{links}open({link!r})")


def test_no_descriptor_is_handed_down() -> None:
    program = (
        "import os\nopen_ones = []\n"
        "for number in range(1024):\n    try: os.fstat(number); open_ones.append(number)\n    except OSError: pass\n"
        "print(open_ones)"
    )
    with open(os.devnull) as file:
        os.set_inheritable(file.fileno(), True)
        assert run(program).output == "[0, 1, 2, 3]\n"


def test_the_disk_is_bounded_and_another_case_finds_none_of_it() -> None:
    fill = "import os\nfor n in range(10**6):\n    open(str(n), 'wb').write(b'x' * 2**20)"
    assert "No space left on device" in refused(fill)
    assert "No space left on device" in refused("for n in range(10**6): open(str(n), 'w')")
    assert "Operation not permitted" in refused("import os; os.memfd_create('x')")
    with Sandbox(
        "import os\nprint(os.listdir('.'), os.listdir('/tmp'))\nopen('mine', 'w'); os.mkdir('x'); os.chmod('x', 0)", LIMITS, NAMESPACES
    ) as sandbox:
        assert [sandbox.run(SandboxCase()).output for _ in range(2)] == ["[] []\n"] * 2


@pytest.mark.parametrize(
    "statement",
    [
        "open(os.__file__, 'a')",
        "open(os.path.dirname(os.__file__) + '/site-packages/x.pth', 'w')",
        "os.chmod(os.__file__, 0o777)",
        "open('/x', 'w')",
        "os.mknod('/box/x', 0o60666, 0x801)",
        "os.setuid(0)",
        "os.chroot('/box')",
    ],
)
def test_the_interpreter_and_the_system_stay_as_they_are(statement: str) -> None:
    assert refused(f"import os\n{statement}").startswith(("OSError: [Errno 30]", "PermissionError: [Errno 1"))


def test_system_calls_that_lead_out_are_refused() -> None:
    calls = {"ptrace": 101, "unshare": 272, "mount": 165, "bpf": 321, "keyctl": 250, "io_uring_setup": 425, "userfaultfd": 323}
    new_user = "libc.syscall(56, 0x10000011, 0, 0, 0, 0)"  # clone with a user namespace
    program = (
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        f"for number in {list(calls.values())}:\n    libc.syscall(number, 0x10000000, 1, 0, 0)\n    print(ctypes.get_errno())\n"
        f"{new_user}; print(ctypes.get_errno())\n"
    )
    assert run(program).output.split() == ["1"] * (len(calls) + 1)


def test_it_dies_with_whoever_started_it() -> None:
    script = (
        "from megatron_entropic.tasks.sandbox import *\nfrom tests.tasks.sandbox.namespaces import *\n"
        "with Sandbox('import os, time\\nos.fork()\\ntime.sleep(1000)', SandboxLimits(wall_s=600), NAMESPACES) as sandbox:\n"
        "    print(namespace(first_process(sandbox).pid), flush=True)\n    sandbox.run(SandboxCase())"
    )
    owner = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert owner.stdout is not None
    inside = owner.stdout.readline().strip()
    assert len(members(inside)) >= 1
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    assert empty_soon(inside)


def test_who_maps_the_users_ends_with_a_sandbox_that_is_killed_as_it_starts() -> None:
    code = (
        "import os\nfrom megatron_entropic.tasks.sandbox.inside import start\n"
        "start.unshare = lambda flags: os.kill(os.getpid(), 9)\nstart._unshare_mapped_from_outside(start.NOBODY)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, timeout=30, check=False)  # until all have closed it
    assert killed.returncode == -9


def test_another_user_than_root_has_the_same_sandbox() -> None:
    """By the system's interpreter, which that user can reach, and the protocol itself."""
    python = Path("/usr/bin/python3")
    if os.geteuid() != 0 or not python.exists():
        pytest.skip("needs root, to become another user, and the system's Python")
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        shutil.copytree(ROOT / "megatron_entropic/tasks/sandbox/inside", f"{folder}/inside")
        program = "import os\nprint(os.getuid(), os.path.exists('/etc/passwd'), flush=True)\n"
        program += "while True:\n    try: os.fork()\n    except OSError: os._exit(7)\n"
        settings = {"alone": False, "program": [program], "shown": [], "limits": {"NPROC": 8, "AS": 2**28, "CPU": 1}}
        settings |= {"disk_bytes": 2**20, "output_bytes": 2**16, "wall_s": 20}
        start = f"import sys; sys.path.insert(0, {folder!r}); from inside.start import main; main()"
        command = [python, "-s", "-S", "-P", "-B", "-c", start]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, user=65534, group=65534, cwd="/"
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(settings) + "\n" + json.dumps({"kind": "program"}) + "\n")
            process.stdin.flush()
            ready, result = (json.loads(process.stdout.readline()) for _ in range(2))
            process.stdin.close()
    assert ready == {"ready": True}
    assert (result["code"], result["output"]) == (7, "65534 False\n")


def test_libraries_may_lie_under_tmp(monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of a checkout there do; what is written goes to the working directory then."""
    libraries = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        libraries.chmod(0o755)
        (libraries / "mine.py").write_text("VALUE = 7\n")
        monkeypatch.setattr(sysconfig, "get_path", lambda name: str(libraries))
        program = "import mine, tempfile\nwith tempfile.TemporaryFile() as file:\n    print(mine.VALUE, file.write(b'x'))"
        with Sandbox(program, LIMITS, NAMESPACES, packages=True) as sandbox:
            result = sandbox.run(SandboxCase())
        assert (result.output, result.errors) == ("7 1\n", "")
    finally:
        shutil.rmtree(libraries)
