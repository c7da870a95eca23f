"""What `make env-gpu` says of a machine that lacks something."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from requirements.gpu_machine import (
    CUDA,
    DRIVER,
    HEADERS,
    MachineError,
    check_compiler,
    checked_driver,
    checked_toolkit,
    driver_version,
    driver_versions,
    missing_headers,
    nvcc_release,
    torch_problem,
)
from requirements.lock import GPU_LOCK, pins
from tests.command_line import ROOT


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ("580.65.06\n", ("580", "65", "06")),
        ("595.10\n595.10\n", ("595", "10")),
        ("No devices were found\n", None),
        ("[N/A]\n", None),
        ("", None),
    ],
)
def test_the_drivers_version_is_read(said: str, version: tuple[str, ...] | None) -> None:
    assert driver_version(said) == version


def test_a_driver_that_is_new_enough() -> None:
    assert checked_driver("580.65.06\n580.65.06\n") == "580.65.06"
    assert checked_driver("1000.1\n") == "1000.1"


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("570.124.06\n", "CUDA 13 needs an NVIDIA driver of 580 or newer, found 570.124.06: have the driver updated"),
        ("99.1\n", "found 99.1"),
        ("No devices were found\n", r"found no GPU \(nvidia-smi says 'No devices were found'\).*WITHOUT_GPU=1"),
        (None, "found none .*WITHOUT_GPU=1"),
    ],
)
def test_any_other_is_refused(said: str | None, message: str) -> None:
    with pytest.raises(MachineError, match=message) as raised:
        checked_driver(said)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("exec sleep 60", "nvidia-smi: no answer within 0.5 s; needed: a driver of 580 or newer"),
        ("exit 9", "nvidia-smi: exit code 9; needed"),
        ("echo 'No devices were found'; exit 6", r"found no GPU \(nvidia-smi says 'No devices were found'\); .*WITHOUT_GPU=1"),
        (r"printf 'no \377 version\n'", "found no GPU"),
        (None, "nvidia-smi: .*Exec format error.*; needed"),
    ],
)
def test_an_nvidia_smi_that_says_no_version(script: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n" if script else "\x7fELF")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(MachineError, match=message) as raised:
        checked_driver(driver_versions(within_s=0.5))
    assert "\n" not in str(raised.value)


def test_what_compiles() -> None:
    check_compiler("/usr/bin/c++", Path("/usr/include/python3.11"))
    with pytest.raises(MachineError, match=r"install g\+\+"):
        check_compiler(None, Path("/usr/include/python3.11"))
    with pytest.raises(MachineError, match=r"install python3\.11-dev"):
        check_compiler("/usr/bin/c++", None)


def test_headers_and_nvcc_are_looked_for_in_the_packages(tmp_path: Path) -> None:
    assert (missing_headers(tmp_path), nvcc_release(tmp_path)) == (list(HEADERS), None)
    for header in HEADERS:
        path = tmp_path / ("cudnn" if header == "cudnn.h" else "cu13") / "include" / header
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert missing_headers(tmp_path) == []
    nvcc = tmp_path / "cu13" / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 13.0, V13.0.88'\n")
    nvcc.chmod(0o755)
    assert nvcc_release(tmp_path) == "13.0"


def test_a_toolkit_that_is_whole_and_others() -> None:
    assert checked_toolkit("13.0", []).startswith("nvcc 13.0")
    for release, missing in ((None, []), ("12.9", []), ("13.0", ["cudnn.h"])):
        with pytest.raises(MachineError, match="run make env-gpu again"):
            checked_toolkit(release, missing)


def test_another_build_of_torch_is_named() -> None:
    assert torch_problem("2.13.0+cu130", "13.0") is None
    assert "2.13.0+cpu is built for CPUs" in str(torch_problem("2.13.0+cpu", None))
    assert "2.13.0+cu129 is built for CUDA 12.9" in str(torch_problem("2.13.0+cu129", "12.9"))


def test_the_lock_file_is_of_the_cuda_that_is_checked_for() -> None:
    names = pins(GPU_LOCK.read_text())
    assert {f"transformer-engine-cu{CUDA}", f"nvidia-cudnn-cu{CUDA}", f"nvidia-nccl-cu{CUDA}"} <= names.keys()
    assert names["cuda-toolkit"].startswith(f"{CUDA}.")
    assert f"driver of {DRIVER} or newer" in GPU_LOCK.read_text()


def make_env_gpu(folder: Path, smi: str, *variables: str) -> subprocess.CompletedProcess[str]:
    """With an nvidia-smi that is a script, and a Python that checks the machine, but else only says what it is to do."""
    for name, script in (
        ("nvidia-smi", smi),
        ("python3.11", f'case "$*" in *" before") exec {sys.executable} "$@";; esac\necho "ran $*"'),
    ):
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    environ = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    command = ["make", "--silent", "env-gpu", f"GPU={folder / 'venv'}", *variables]
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)


def test_another_python_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    other = tmp_path / "python3.12"
    other.write_text(f'#!/bin/sh\nexec {sys.executable} -c "import sys; sys.version_info = (3, 12, 1); $2"\n')
    other.chmod(0o755)
    refused = make_env_gpu(tmp_path, "echo 580.65.06", f"PYTHON={other}")
    assert refused.returncode
    assert f"error: {other} is not Python 3.11, which the pins are for" in refused.stderr
    assert "1/5" not in refused.stdout


def test_make_env_gpu_looks_at_the_driver_before_anything_is_made(tmp_path: Path) -> None:
    old = make_env_gpu(tmp_path, "echo 535.183.01")
    assert old.returncode
    assert "error: CUDA 13 needs an NVIDIA driver of 580 or newer, found 535.183.01: have the driver updated\n" in old.stderr
    assert "ran" not in old.stdout
    broken = make_env_gpu(tmp_path, "echo 'Failed to initialize NVML'; exit 18")
    assert "error: nvidia-smi: Failed to initialize NVML; needed: a driver of 580 or newer\n" in broken.stderr
    new = make_env_gpu(tmp_path, "echo 580.65.06")
    assert "driver 580.65.06, a C++ compiler\n2/5" in new.stdout
    without = make_env_gpu(tmp_path, "exit 1", "WITHOUT_GPU=1")
    assert "1/5 checking the machine\na C++ compiler\n2/5" in without.stdout
