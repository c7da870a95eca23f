"""What `make env-gpu` asks of a machine, in one line where it is lacking: `python requirements/gpu_machine.py CHECK`.

before: the driver, and what compiles C++. toolkit: torch's build, and the CUDA headers among the packages. after: what the environment
sees. With --without-gpu, as where a container's image is built, only what needs no GPU is looked at.
"""

import argparse
import importlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CUDA = 13
"""The major version that the lock file's torch, vLLM and Transformer Engine are built for."""
DRIVER = 580
"""NVIDIA's first driver for it."""
GO_ON = "on a machine without GPUs, such as one that builds an image: make env-gpu WITHOUT_GPU=1"
HEADERS = ("cuda_runtime.h", "cublasLt.h", "nvrtc.h", "cudnn.h", "nccl.h", "nvtx3/nvToolsExt.h")
"""What transformer_engine_torch includes; the lock file's packages bring them, so no CUDA toolkit of the machine is needed."""
NONE = "No devices were found"
ANSWERS_WITHIN_S = 60.0
QUERY = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")


class MachineError(Exception):
    """The environment cannot be made or used here; the message says what is lacking and what to do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one of the checks; returns 1 when something is lacking."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("check", choices=("before", "toolkit", "after"))
    parser.add_argument("--without-gpu", action="store_true", help="leave out what needs a GPU or its driver")
    options = parser.parse_args(arguments)
    try:
        print({"before": before, "toolkit": toolkit, "after": after}[options.check](options.without_gpu))
    except MachineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def before(without_gpu: bool) -> str:
    """What was found. Raises MachineError when the driver is too old, or nothing compiles C++ here."""
    found = [] if without_gpu else [f"driver {checked_driver(driver_versions())}"]
    include = Path(sysconfig.get_paths()["include"])
    compiler = os.environ.get("CXX", "c++").split()[0]  # CXX may have flags
    check_compiler(shutil.which(compiler), include if (include / "Python.h").is_file() else None)
    return ", ".join([*found, "a C++ compiler"])


def driver_versions(within_s: float = ANSWERS_WITHIN_S) -> str | None:
    """nvidia-smi's words, a line a GPU; None where there is none. Raises MachineError when it fails."""
    if shutil.which(QUERY[0]) is None:
        return None
    needed = f"needed: a driver of {DRIVER} or newer"
    try:
        done = subprocess.run(QUERY, capture_output=True, text=True, errors="replace", timeout=within_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise MachineError(f"nvidia-smi: no answer within {within_s:g} s; {needed}") from error
    except OSError as error:
        raise MachineError(f"nvidia-smi: {error}; {needed}") from error
    if done.returncode and driver_version(done.stdout) is None and NONE not in done.stdout:
        reason = (done.stdout + done.stderr).strip().partition("\n")[0] or f"exit code {done.returncode}"
        raise MachineError(f"nvidia-smi: {reason}; {needed}")
    return done.stdout


def checked_driver(versions: str | None) -> str:
    """The driver's version. Raises MachineError when it is absent, not understood or too old for the lock file's CUDA."""
    needed = f"CUDA {CUDA} needs an NVIDIA driver of {DRIVER} or newer"
    if versions is None:
        raise MachineError(f"{needed}, found none (no nvidia-smi here); {GO_ON}")
    version = driver_version(versions)
    if version is None:
        raise MachineError(f"{needed}, found no GPU (nvidia-smi says {versions.strip()!r}); {GO_ON}")
    text = ".".join(version)
    if int(version[0]) < DRIVER:
        raise MachineError(f"{needed}, found {text}: have the driver updated")
    return text


def driver_version(versions: str) -> tuple[str, ...] | None:
    """The parts of the first line's version; None when it is none. All GPUs of a machine have one driver."""
    found = re.match(r"\s*(\d+(?:\.\d+)+)\s*(?:\n|$)", versions)
    return tuple(found[1].split(".")) if found else None


def check_compiler(compiler: str | None, include: Path | None) -> None:
    """Raises MachineError when transformer_engine_torch cannot be compiled for want of a compiler or of Python's headers."""
    if compiler is None:
        raise MachineError("no C++ compiler (c++) found to build transformer_engine_torch with: install g++, or set CXX")
    if include is None:
        raise MachineError(
            "Python.h not found, to build transformer_engine_torch with: install python3.11-dev (Debian) or python3.11-devel"
        )


def toolkit(without_gpu: bool) -> str:
    """The nvcc and headers that come with the packages. Raises MachineError when some are lacking, or torch is another build."""
    del without_gpu  # torch for CUDA is imported without one
    cuda_torch()
    packages = Path(sysconfig.get_paths()["purelib"]) / "nvidia"
    return checked_toolkit(nvcc_release(packages), missing_headers(packages))


def nvcc_release(packages: Path) -> str | None:
    """The release of the packages' own nvcc, such as 13.0; None where there is none."""
    nvcc = packages / f"cu{CUDA}" / "bin" / "nvcc"
    if not nvcc.is_file():
        return None
    said = subprocess.run([nvcc, "-V"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"release (\d+\.\d+)", said)
    return found[1] if found else None


def missing_headers(packages: Path) -> list[str]:
    """Which of HEADERS none of the packages has."""
    return [name for name in HEADERS if not any((folder / "include" / name).is_file() for folder in packages.glob("*"))]


def checked_toolkit(release: str | None, missing: Sequence[str]) -> str:
    """A line that says what is there. Raises MachineError."""
    again = "remove .venv-gpu and run make env-gpu again"
    if release is None or int(release.partition(".")[0]) != CUDA:
        raise MachineError(f"nvcc {CUDA} is needed to build transformer_engine_torch, the packages have {release or 'none'}: {again}")
    if missing:
        raise MachineError(f"the packages lack CUDA headers that transformer_engine_torch includes ({', '.join(missing)}): {again}")
    return f"nvcc {release} and CUDA's headers, from the packages"


def after(without_gpu: bool) -> str:
    """What the environment has and sees. Raises MachineError when torch sees no GPU, or a package cannot be imported."""
    torch = cuda_torch()  # first: Transformer Engine finds NCCL only where torch has loaded it
    imported("transformer_engine.pytorch")  # loads the extension that was compiled
    has = ", ".join(f"{name} {imported(name).__version__}" for name in ("torch", "transformer_engine"))
    if without_gpu:
        return f"{has}; left for a machine with GPUs: vllm"
    if not torch.cuda.is_available():
        raise MachineError("torch sees no GPU: is CUDA_VISIBLE_DEVICES empty, or was the job or container given none? (nvidia-smi -L)")
    gpus = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    return f"{has}, vllm {imported('vllm').__version__}, {gpus}"


def cuda_torch() -> Any:
    """torch, imported. Raises MachineError when it is not the lock file's build."""
    torch = imported("torch")
    if problem := torch_problem(torch.__version__, torch.version.cuda):
        raise MachineError(problem)
    return torch


def torch_problem(version: str, cuda: str | None) -> str | None:
    """Why this torch is not the lock file's; None when it is."""
    if cuda is None:
        return f"torch {version} is built for CPUs: leave out the index or folder of pip's configuration that has it (pip config list)"
    if int(cuda.partition(".")[0]) != CUDA:
        return f"torch {version} is built for CUDA {cuda}: leave out the index of pip's configuration that has it (pip config list)"
    return None


def imported(name: str) -> Any:
    """A module. Raises MachineError with the reason when it cannot be imported."""
    try:
        return importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:  # a library that is not found is an OSError
        reason = str(error).strip().splitlines()
        raise MachineError(f"{name} cannot be imported: {reason[0] if reason else type(error).__name__}") from error


if __name__ == "__main__":
    sys.exit(main())
