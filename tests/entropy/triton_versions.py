"""The versions of Triton that the kernels are tested with: the installed one, and the one that comes with torch on a GPU.

torch's CPU builds bring no Triton, so requirements/cpu.lock names the newest; torch 2.13's CUDA builds pin 3.7.1, as
requirements/gpu.lock does. That one is put into build/, outside the environment, once, and found by processes that have it first in
their PYTHONPATH.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PINNED = re.search(r"^triton==(\S+)", (ROOT / "requirements" / "gpu.lock").read_text(), re.MULTILINE)
assert PINNED is not None
OF_TORCH_ON_A_GPU, INSTALLED = PINNED.group(1), "installed"
VERSIONS = (OF_TORCH_ON_A_GPU, INSTALLED)
UNREACHABLE = re.compile(
    r"Retrying \(|Failed to establish|Name or service not known|name resolution|timed out|ProxyError|Network is", re.I
)


def environment_with(version: str) -> dict[str, str]:
    """The environment of a process that imports this version; installs it on the first call. Skips where no index can be reached."""
    if version == INSTALLED:
        pytest.importorskip("triton")
        return dict(os.environ)
    path = [str(ROOT), str(_folder_with(version)), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


def _folder_with(version: str) -> Path:
    """build/triton-VERSION, complete or not there at all, whoever else is making it."""
    folder = ROOT / "build" / f"triton-{version}"
    if folder.exists():
        return folder
    part = folder.with_name(f".{folder.name}.{os.getpid()}")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--retries", "1", "--timeout", "30"]
    install = subprocess.run(
        [*command, "--target", str(part), f"triton=={version}"], capture_output=True, text=True, timeout=400, check=False
    )
    try:
        if install.returncode != 0:
            if UNREACHABLE.search(install.stderr):
                pytest.skip(f"triton {version}: the package index cannot be reached: {install.stderr.strip().splitlines()[0]}")
            pytest.fail(f"triton {version} was not installed:\n{install.stdout}{install.stderr}")
        try:
            part.rename(folder)
        except OSError:  # another worker was faster
            assert folder.exists()
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder
