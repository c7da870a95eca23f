"""Servers whose rank was killed: ended by the launcher, hung or not, and their folders removed; other orphans are left alone."""

import os
import subprocess
import sys
from pathlib import Path

from megatron_entropic.system.orphans import SCRATCH_VARIABLE
from tests.command_line import ROOT

LAUNCHER = '''
import os, signal, subprocess, sys, time
from pathlib import Path
from megatron_entropic.system.orphans import SCRATCH_VARIABLE, end_orphaned_servers, inherit_orphans
inherit_orphans()
folder = sys.argv[1]
rank = f"""
import os, subprocess
def start(**extra):
    quiet = {{"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}}
    return subprocess.Popen(["sleep", "60"], env={{**os.environ, **extra}}, **quiet).pid
print(start({SCRATCH_VARIABLE}={folder!r}), start(), flush=True)
os.kill(os.getpid(), 9)
"""
done = subprocess.run([sys.executable, "-c", rank], stdout=subprocess.PIPE, text=True)
server, other = map(int, done.stdout.split())
os.kill(server, signal.SIGSTOP)
begin = time.monotonic()
ended = end_orphaned_servers(0.5)
assert ended == [server], ended
assert 0.4 < time.monotonic() - begin < 20
assert not Path(f"/proc/{server}").exists()
assert Path(f"/proc/{other}").exists()
os.kill(other, signal.SIGKILL)
print("well")
'''


def test_a_hung_server_of_a_killed_rank_is_ended_and_nothing_else(tmp_path: Path) -> None:
    scratch = tmp_path / "vllm_0_x"
    scratch.mkdir()
    environ = {name: value for name, value in os.environ.items() if name != SCRATCH_VARIABLE}
    done = subprocess.run(
        [sys.executable, "-c", LAUNCHER, str(scratch)], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "well\n", done.stderr
    assert not scratch.exists()
