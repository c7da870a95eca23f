"""`pip install .`: the wheel's commands work from an empty folder, with the checkout out of reach."""

import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.command_line import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.distributed]
QUICK = ("trainer.steps=2", "batch.prompts_per_step=4", "batch.samples_per_prompt=4", "rollout.engine=local", "parallel.tensor=1")
LEFT_OUT = shutil.ignore_patterns(".*", "runs", "build", "tests", "docs", "benchmarks", "SmolLM2-*", "*.egg-info", "__pycache__")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bin/ of a fresh environment with the wheel in it. It borrows the dependencies of this one, but not its checkout."""
    folder = tmp_path_factory.mktemp("installed")
    shutil.copytree(ROOT, folder / "source", ignore=LEFT_OUT)  # setuptools writes into the source
    build = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder), str(folder / "source")]
    _checked([sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *build], folder)
    shutil.rmtree(folder / "source")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    wheel = next(folder.glob("*.whl"))
    _checked(
        [sys.executable, "-m", "pip", "--python", str(python), "--quiet", "install", "--no-deps", "--no-index", str(wheel)], folder
    )
    packages = [path for path in sys.path if path.endswith("site-packages")]
    next(folder.glob("venv/lib/*/site-packages")).joinpath("zz_borrowed.pth").write_text("\n".join(packages))
    return python.parent


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    return tmp_path


def _checked(command: list[str], folder: Path) -> str:
    """Output of a command that must succeed, run in `folder` without this process's way to the checkout."""
    environ = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "ENTROPIC_ROOT", "ENTROPIC_PYTHON")}
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{command}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_help_and_version(installed: Path, empty: Path) -> None:
    command = str(installed / "megatron-entropic")
    assert _checked([command], empty) == _checked([command, "--help"], empty)
    assert re.fullmatch(r"megatron-entropic \d+\.\d+\.\d+\n", _checked([command, "--version"], empty))


def test_two_steps_of_the_quickstart(installed: Path, empty: Path) -> None:
    """The shipped model is found by the recipe and by its path in a checkout."""
    command = str(installed / "megatron-entropic")
    output = _checked([command, "train", "quickstart", "model.hf_path=models/tiny-decompose", *QUICK], empty)
    assert "2 of 2 steps done" in output
    assert (empty / "runs" / "quickstart" / "hf" / "model.safetensors").is_file()
    assert (empty / "runs" / "quickstart" / "report.html").is_file()
    assert "readable" in _checked([command, "doctor", "quickstart"], empty)


def test_both_tiny_models_are_in_the_wheel(installed: Path) -> None:
    shipped = next(installed.parent.glob("lib/*/site-packages")) / "megatron_entropic" / "models"
    for model in (ROOT / "models").glob("tiny-*"):
        assert {path.name: path.read_bytes() for path in model.iterdir()} == {
            path.name: path.read_bytes() for path in (shipped / model.name).iterdir()
        }


def test_the_sbatch_file_finds_its_code(installed: Path, empty: Path) -> None:
    """Outside a job the launcher itself says what is missing; on a cluster: tests/slurm."""
    folder = _checked([str(installed / "megatron-entropic"), "slurm-files"], empty).strip()
    environ = {"PATH": "/usr/bin:/bin", "SLURM_SUBMIT_DIR": str(empty)}
    for script in sorted(Path(folder).glob("*.sbatch")):
        done = subprocess.run(["bash", script, "quickstart"], cwd=empty, env=environ, capture_output=True, text=True, check=False)
        assert "slurm.launch" in done.stderr
        assert "No module" not in done.stderr
    assert f"{folder}/train.sbatch" in _checked(
        [str(installed / "python"), "-m", "slurm.submit", "train", "quickstart", "--dry-run"], empty
    )
