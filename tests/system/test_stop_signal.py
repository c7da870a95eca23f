"""A process ends when it is told to, also when its main thread never comes back to Python."""

import signal
import subprocess
import sys
import time

import pytest

STUCK = """
import ctypes, signal, sys
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also when the suite itself runs under nohup
from megatron_entropic.system import stop_signal
stop_signal._UNWIND_S = 0.5
stop_signal.handle_stop_signals(grace_s=0.5, interrupt_saves="saves" in sys.argv)
print("ready", flush=True)
libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
for _ in range(2):  # the second time it waits for itself, outside the interpreter, as in a collective whose peers are gone
    libc.pthread_mutex_lock(mutex)
"""


@pytest.mark.parametrize(
    ("signum", "interrupt"),
    [(signal.SIGINT, "ends"), (signal.SIGINT, "saves"), (signal.SIGTERM, "ends"), (signal.SIGTERM, "saves"), (signal.SIGHUP, "ends")],
)
def test_a_main_thread_that_is_stuck_outside_python_does_not_keep_the_process(signum: signal.Signals, interrupt: str) -> None:
    process = subprocess.Popen([sys.executable, "-c", STUCK, interrupt], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process, process.stdout:
        assert process.stdout.readline() == b"ready\n"
        time.sleep(0.2)
        process.send_signal(signum)
        try:
            assert process.wait(20) == 128 + signal.SIGINT
        finally:
            process.kill()
