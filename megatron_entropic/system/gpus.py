"""The GPUs of this machine as nvidia-smi lists them, whether torch can use them or not. Needs no torch."""

import csv
import shutil
import subprocess
from dataclasses import dataclass

from megatron_entropic.errors import ReportedError

_FIELDS = ("name", "driver_version", "memory.total", "memory.used", "ecc.errors.uncorrected.volatile.total", "mig.mode.current")
_NONE = "No devices were found"


@dataclass(frozen=True)
class GPU:
    """One GPU; memory in MiB; `uncorrected` counts memory errors since the driver was loaded; `sliced`: it is split by MIG."""

    name: str
    driver: str
    memory: int
    used: int
    uncorrected: int
    sliced: bool = False


class GPUQueryError(ReportedError, RuntimeError):
    """nvidia-smi is there but does not answer: the driver is broken; the message holds its words."""


def find_gpus(timeout_s: float = 30.0) -> list[GPU]:
    """The GPUs of this machine; none where there is no nvidia-smi. Raises GPUQueryError."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise GPUQueryError(f"nvidia-smi: {error}") from error
    if _NONE in done.stdout:
        return []
    if done.returncode:
        said = (done.stdout or done.stderr).strip().splitlines()
        raise GPUQueryError(f"nvidia-smi: {said[0] if said else f'exit code {done.returncode}'}")
    return parse_gpus(done.stdout)


def parse_gpus(text: str) -> list[GPU]:
    """The GPUs in nvidia-smi's CSV of the fields above; numbers it does not know ("[N/A]") are 0."""

    def number(word: str) -> int:
        return int(word) if word.isdigit() else 0

    rows = csv.reader(text.strip().splitlines(), skipinitialspace=True)
    return [
        GPU(name, driver, number(memory), number(used), number(errors), sliced=mig.strip() == "Enabled")
        for name, driver, memory, used, errors, mig in rows
    ]
