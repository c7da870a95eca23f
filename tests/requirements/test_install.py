"""Installing a lock file: in what order, from which index, and what is said meanwhile."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from requirements.install import chosen, describe, not_found
from tests.command_line import ROOT

LOCK = "# remarks stay out\nalpha==1\ntorch==2.13.0+cpu\nbuilt-last==3  # from source\n\n"


def test_local_builds_come_first_and_packages_can_be_left_for_later() -> None:
    assert chosen(LOCK) == ["torch==2.13.0+cpu", "alpha==1", "built-last==3"]
    assert chosen(LOCK, without="built-last") == ["torch==2.13.0+cpu", "alpha==1"]
    assert chosen(LOCK, only="built-last") == ["built-last==3"]
    with pytest.raises(SystemExit, match="built_last is not in the lock file"):
        chosen(LOCK, without="built_last")


def test_only_local_builds_are_looked_for_elsewhere() -> None:
    pins = chosen(LOCK)
    assert not_found(["ERROR: No matching distribution found for torch==2.13.0+cpu\n"], pins) == ["torch==2.13.0+cpu"]
    assert not_found(["ERROR: No matching distribution found for alpha==1\n"], pins) == []
    assert not_found(["ERROR: No space left on device\n"], pins) == []


def test_progress() -> None:
    assert describe("Collecting alpha==1\n", 2, 3) == "2 of 3 packages  alpha==1"
    assert describe("Installing collected packages: alpha\n", 3, 3) == "unpacking 3 packages, the longest part"
    assert describe("  [12/33] c++ -MMD -c csrc/attention.cpp\n", 1, 1) == "compiled 12 of 33 files"


def wheel(folder: Path, name: str, version: str) -> None:
    """An empty package, in an index of the folder."""
    page = folder / name
    page.mkdir(parents=True, exist_ok=True)
    file, info = f"{name}-{version}-py3-none-any.whl", f"{name}-{version}.dist-info"
    with zipfile.ZipFile(page / file, "w") as archive:
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    (page / "index.html").write_text(f'<a href="{file.replace("+", "%2B")}">{file}</a>')


def install(tmp_path: Path, lock: str, *options: str) -> subprocess.CompletedProcess[str]:
    """With pip that knows nothing but the index `public`."""
    (tmp_path / "some.lock").write_text(lock)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    environ |= {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": (tmp_path / "public").as_uri()}
    command = [sys.executable, str(ROOT / "requirements" / "install.py"), "some.lock", f"--target={tmp_path / 'installed'}", *options]
    return subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)


def installed(tmp_path: Path) -> set[str]:
    return {path.name.removesuffix(".dist-info") for path in (tmp_path / "installed").glob("*.dist-info")}


def test_a_build_that_the_index_lacks_comes_from_the_one_that_is_named(tmp_path: Path) -> None:
    wheel(tmp_path / "public", "torch", "2.0")
    wheel(tmp_path / "public", "alpha", "1")
    wheel(tmp_path / "builds", "torch", "2.0+cpu")
    wheel(tmp_path / "builds", "alpha", "1")  # never taken from there
    lock, builds = "alpha==1\ntorch==2.0+cpu\n", (tmp_path / "builds").as_uri()
    refused = install(tmp_path, lock)
    assert refused.returncode
    assert "No matching distribution found for torch==2.0+cpu" in refused.stdout
    done = install(tmp_path, lock, f"--local-index={builds}")
    assert done.returncode == 0, done.stdout
    assert f"torch==2.0+cpu: not in the configured index, hence from {builds}" in done.stdout
    assert installed(tmp_path) == {"alpha-1", "torch-2.0+cpu"}
    assert re.findall(r"(\d+ packages?) installed", done.stdout) == ["1 package", "1 package"]


def test_the_named_index_is_not_asked_for_what_the_configured_one_has(tmp_path: Path) -> None:
    wheel(tmp_path / "public", "torch", "2.0+cpu")
    done = install(tmp_path, "torch==2.0+cpu\n", "--local-index=https://no-such-host.invalid/simple")
    assert (done.returncode, installed(tmp_path)) == (0, {"torch-2.0+cpu"}), done.stdout
    assert "no-such-host" not in done.stdout


def test_make_env_names_the_index_of_the_builds_that_the_public_index_lacks() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert "TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu\n" in makefile
    assert "requirements/cpu.lock --local-index $(TORCH_CPU_INDEX)\n" in makefile
    local = [pin for pin in chosen((ROOT / "requirements" / "cpu.lock").read_text()) if "+" in pin]
    assert [pin.partition("==")[0] for pin in local] == ["torch"], "that index has torch; where are these from?"
