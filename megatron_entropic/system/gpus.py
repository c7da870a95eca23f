"""The GPUs of this machine as nvidia-smi lists them, whether torch can use them or not. Needs no torch."""

import csv
import shutil
import subprocess
from dataclasses import dataclass

from megatron_entropic.errors import ReportedError

_FIELDS = ("name", "driver_version", "memory.total", "memory.used", "ecc.errors.uncorrected.volatile.total", "mig.mode.current")
_NONE = "No devices were found"
_SMALL_FAULT = 14
"""nvidia-smi's exit code where a GPU works but its infoROM is corrupted, which it says in a line of its own after the table."""


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
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise GPUQueryError(f"nvidia-smi: no answer within {timeout_s:g} s") from error
    except OSError as error:
        raise GPUQueryError(f"nvidia-smi: {error}") from error
    if _NONE in done.stdout:
        return []
    gpus = parse_gpus(done.stdout) if done.returncode in (0, _SMALL_FAULT) else []
    if not gpus:
        said = [line for line in f"{done.stdout}\n{done.stderr}".splitlines() if line.strip() and not parse_gpus(line)]
        raise GPUQueryError(f"nvidia-smi: {said[0] if said else f'no words, exit code {done.returncode}'}")
    return gpus


def parse_gpus(text: str) -> list[GPU]:
    """The GPUs in nvidia-smi's CSV of the fields above, among lines of other words; numbers it does not know ("[N/A]") are 0."""

    def number(word: str) -> int:
        return int(word) if word.isdigit() else 0

    rows = [row for row in csv.reader(text.strip().splitlines(), skipinitialspace=True) if len(row) == len(_FIELDS)]
    return [
        GPU(name, driver, number(memory), number(used), number(errors), sliced=mig.strip() == "Enabled")
        for name, driver, memory, used, errors, mig in rows
    ]
