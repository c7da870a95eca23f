"""The images' definitions make the environment of `make env-gpu`, from all that it needs, and both the same."""

import re

import pytest

from requirements.gpu_machine import CUDA
from requirements.lock import GPU_LOCK, pins
from tests.command_line import ROOT

DOCKERFILE = (ROOT / "containers" / "Dockerfile").read_text()
APPTAINER = (ROOT / "containers" / "megatron_entropic.def").read_text()
HOME = DOCKERFILE.partition("WORKDIR ")[2].splitlines()[0]
"""Where the checkout lies in both images."""


def copied() -> dict[str, set[str]]:
    """What of the checkout each of the two takes along."""
    docker = [line.split()[1:-1] for line in re.findall(r"^COPY (?:.+)$", DOCKERFILE, flags=re.MULTILINE)]
    apptainer = dict(re.findall(r"^    (\S+) (\S+)$", APPTAINER.partition("%files")[2].partition("%post")[0], flags=re.MULTILINE))
    assert apptainer == {name: f"{HOME}/{name}" for name in apptainer}
    return {"docker": {name for names in docker for name in names}, "apptainer": set(apptainer)}


def test_all_that_is_installed_is_taken_along() -> None:
    packages = re.search(r"find_packages\(include=\[(.*?)\]\)", (ROOT / "setup.py").read_text())
    assert packages is not None
    needed = {"Makefile", "setup.py", "README.md", "requirements", *re.findall(r'"(\w+)\*"', packages.group(1))}
    needed |= {f"models/{folder.name}" for folder in (ROOT / "models").glob("tiny-*")}
    for tool, names in copied().items():
        assert needed <= names, tool
        assert not [name for name in names if name.startswith("models") and name not in needed], "a model that users keep there"
        assert all((ROOT / name).exists() for name in names), tool


@pytest.mark.parametrize("text", [DOCKERFILE, APPTAINER], ids=["docker", "apptainer"])
def test_the_environment_is_that_of_make(text: str) -> None:
    assert text.count("make env-gpu WITHOUT_GPU=1\n") == 1
    assert "$(GPU)/.installed: requirements/gpu.lock" in (ROOT / "Makefile").read_text()
    assert "pip install" not in text
    assert f"PATH={HOME}/.venv-gpu/bin:$PATH" in text, "the image's python3 is the environment's"
    assert "PYTHONNOUSERSITE=1" in text


def test_both_have_the_same_base_of_the_lock_files_cuda() -> None:
    bases = re.findall(r"^(?:FROM|From:) (\S+)$", DOCKERFILE + APPTAINER, flags=re.MULTILINE)
    assert len(bases) == 2
    assert len(set(bases)) == 1
    toolkit = ".".join(pins(GPU_LOCK.read_text())["cuda-toolkit"].split(".")[:2])
    assert toolkit.startswith(f"{CUDA}.")
    assert bases[0].startswith(f"nvidia/cuda:{toolkit}.")


def test_both_install_the_same_packages_of_the_distribution() -> None:
    named = [re.findall(r"dnf install -y (.*?) &&", text) for text in (DOCKERFILE, APPTAINER)]
    assert named[0] == named[1]
    assert {"gcc-c++", "python3.11", "python3.11-devel", "make"} <= set(named[0][0].split())
