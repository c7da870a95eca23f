"""Parts that go wrong in every way: `python -m tests.doctor.smoke_parts REPORT [PART,PART]` is a `doctor --gpu-smoke` of them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from megatron_entropic.doctor.smoke.command import smoke
from megatron_entropic.doctor.smoke.findings import Findings
from megatron_entropic.doctor.smoke.table import SmokePart


def good(findings: Findings) -> None:
    findings.step("being good")
    findings.found("a number", metres=1.5, of_what="nothing", not_a_number=float("nan"))
    findings.cannot("flying", "no wings")


def garbage(findings: Findings) -> None:
    sys.stdout.buffer.write(bytes(range(256)) + "» \x1b[2J\n".encode() + b'{"rows": 3}\n')
    findings.found("something", value=1.0)


def raises(findings: Findings) -> None:
    findings.found("before", value=1.0)
    raise KeyError("a line of it\nand another")


def dies(findings: Findings) -> None:
    print("last words", flush=True)
    os._exit(3)


def killed(findings: Findings) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hangs(findings: Findings) -> None:
    """With a process in a session of its own, whose parent ends at once, and which does not mind SIGTERM."""
    _leave_a_process()
    time.sleep(600)


def leaves(findings: Findings) -> None:
    findings.found("something", value=1.0)
    _leave_a_process()


def lies(findings: Findings) -> None:
    Path(sys.argv[2]).write_text('{"rows": ')
    os._exit(0)


def wrong(findings: Findings) -> None:
    findings.at_most("an error", 2.0, 1.0)
    findings.at_most("another", float("nan"), 1.0)
    findings.found("it went on", value=1.0)


def nothing(findings: Findings) -> None:
    findings.cannot("everything", "no reason")


def lacking(findings: Findings) -> None:
    raise AssertionError("it must not be tried")


def _leave_a_process() -> None:
    script = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    starter = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {script!r}], start_new_session=True)"
    subprocess.run([sys.executable, "-c", starter], check=True)


PARTS = [
    SmokePart(
        function.__name__, function.__name__, 2 if function is hangs else 60, f"tests.doctor.smoke_parts:{function.__name__}", needs
    )
    for function, needs in (
        (good, ("json",)),
        (garbage, ()),
        (raises, ()),
        (dies, ()),
        (killed, ()),
        (hangs, ()),
        (leaves, ()),
        (lies, ()),
        (wrong, ()),
        (nothing, ()),
        (lacking, ("json", "no_such_module.at_all")),
    )
]


if __name__ == "__main__":
    sys.exit(smoke(sys.argv[2].split(",") if len(sys.argv) > 2 else None, Path(sys.argv[1]), PARTS))
