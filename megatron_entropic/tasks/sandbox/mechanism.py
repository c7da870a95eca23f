"""What keeps a program in on this machine: found by trying it, once in a process."""

import platform
import sys
from functools import cache

from megatron_entropic.tasks.sandbox.records import ALONE, NAMESPACES, Mechanism, SandboxCase, SandboxError, SandboxLimits
from megatron_entropic.tasks.sandbox.sandbox import Sandbox

MACHINES = ("x86_64", "aarch64")

_PROBE = """
import os, time
for _ in range(16):
    try:
        if os.fork() == 0:
            time.sleep(60)
    except OSError:
        print("bounded", flush=True)
        os._exit(0)
print("not bounded", flush=True)
"""


def best_mechanism(*, allow_unsandboxed: bool = False) -> Mechanism:
    """The one to use here. Raises SandboxError with the reason where namespaces are refused, unless `allow_unsandboxed`."""
    why = namespaces_refused()
    if not why:
        return NAMESPACES
    if allow_unsandboxed and sys.platform == "linux" and platform.machine() in MACHINES:
        return ALONE
    raise SandboxError(
        f"programs cannot be kept in a sandbox here: {why}. Where unprivileged user namespaces are off, let the administrator allow "
        "them, or start the container with the right to make namespaces; the option allow_unsandboxed=true runs programs "
        "with limits and a system call filter alone: they can then read every file that you can"
    )


@cache
def namespaces_refused() -> str:
    """The reason why there are no namespaces for a sandbox; empty where one was made and ran a program."""
    if sys.platform != "linux" or platform.machine() not in MACHINES:
        return f"this is {sys.platform} on {platform.machine()}, and a sandbox needs Linux on {' or '.join(MACHINES)}"
    try:
        with Sandbox(_PROBE, SandboxLimits(processes=4), NAMESPACES) as sandbox:
            result = sandbox.run(SandboxCase())
    except (SandboxError, OSError) as error:
        return str(error)
    if result.output == "not bounded\n":
        return "the kernel does not count the processes of root, and no other user can be mapped"
    return "" if result.output == "bounded\n" else f"a program that tries it ended with exit code {result.code}: {result.errors[-200:]}"


def described() -> str:
    """One line on what this machine offers."""
    why = namespaces_refused()
    return f"refused: {why}" if why else str(NAMESPACES)
