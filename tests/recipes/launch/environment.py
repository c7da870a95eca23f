"""Runs things in NeMo-Run's own environment, which is built, as `make env-launch` does, where it is not there yet."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command_line import ROOT

FOLDER = ROOT / ".venv-launch"
SHRUNKEN = (
    "quickstart",
    "rollout.engine=local",
    "trainer.steps=2",
    "batch.prompts_per_step=8",
    "batch.samples_per_prompt=4",
    "trainer.tensorboard=false",
)
"""The quickstart without servers: seconds instead of minutes."""


@functools.cache
def launch_python() -> Path:
    """The Python of .venv-launch. Skips the test where it is missing and the package index cannot be reached."""
    if not (FOLDER / ".installed").exists():
        done = subprocess.run(["make", "env-launch"], cwd=ROOT, capture_output=True, text=True, timeout=550, check=False)
        if done.returncode and any(word in done.stderr for word in ("ConnectionError", "TimeoutError", "Retrying (")):
            pytest.skip(f"make env-launch cannot reach a package index: {done.stderr.strip().splitlines()[-1]}")
        assert done.returncode == 0, done.stderr
    return FOLDER / "bin" / "python"


def in_launch_environment(
    *arguments: str, home: Path, environ: dict[str, str] | None = None, timeout: float = 200.0
) -> subprocess.CompletedProcess[str]:
    """Runs .venv-launch's Python with `arguments`, from the checkout, with NeMo-Run's folder and the user's home under `home`."""
    folders = {"NEMORUN_HOME": str(home / "launch"), "HOME": str(home / "user")}
    variables = {**os.environ, "ENTROPIC_PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **(environ or {}), **folders}
    return subprocess.run(
        [launch_python(), *arguments], cwd=ROOT, env=variables, capture_output=True, text=True, timeout=timeout, check=False
    )


def launch(*arguments: str, home: Path, environ: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """`python -m recipes.launch ARGUMENTS`."""
    return in_launch_environment("-m", "recipes.launch", *arguments, home=home, environ=environ)
