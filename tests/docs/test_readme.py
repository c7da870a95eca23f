"""README's commands run as they are pasted; `make env` says how far it is."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command_line import ROOT

BLOCKS = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
LONG = {
    "make quickstart": "CI runs it before the tests (.ci/run)",
    "make test": "this is it",
    "megatron-entropic train quickstart run.name=entropic": "minutes, with servers; tests/trainer/test_end_to_end.py is shorter",
    "megatron-entropic train quickstart run.name=none control.kind=none": "the same",
    "megatron-entropic doctor --gpu-smoke": "a minute or two, with servers: tests/doctor/test_smoke_parts.py",
    "python -m recipes.smollm2": "tests/recipes/test_smollm2.py",
    "megatron-entropic train smollm2_135m": "tens of minutes; tests/trainer/test_smollm2.py makes three steps",
    "megatron-entropic report runs/entropic --compare runs/none": "needs the two runs; tests/observability makes comparisons",
}
"""Commands left out, and why."""


def commands(block: str) -> list[str]:
    """Its commands, without remarks."""
    return [line.partition("  #")[0].strip() for line in block.splitlines() if line.strip()]


@pytest.mark.slow
@pytest.mark.distributed
def test_blocks_run_through_bash(tmp_path: Path) -> None:
    """In a folder with nothing but .venv: what the commands need comes with the installation."""
    pasted = [command for block in BLOCKS for command in commands(block)]
    assert set(LONG) <= set(pasted), "a command that is left out is no longer in README"
    (tmp_path / ".venv").symlink_to(sys.prefix)
    for block in BLOCKS:
        script = "\n".join(line for line in block.splitlines() if not set(commands(line)) & set(LONG))
        environ = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"} | {
            "PATH": "/usr/local/bin:/usr/bin:/bin"
        }
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script], cwd=tmp_path, env=environ, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
    assert (tmp_path / "runs" / "short" / "evaluation.json").is_file()


def test_what_is_typed_bare_was_activated_before() -> None:
    for block in BLOCKS:
        typed = commands(block)
        if any(command.startswith(("megatron-entropic", "python")) for command in typed):
            assert typed[0] == "source .venv/bin/activate", block
    assert ".venv/bin/megatron-entropic" not in (ROOT / "README.md").read_text()


def test_installation_says_how_far_it_is(tmp_path: Path) -> None:
    """With packages that are there already, and with one that is nowhere."""
    lock = tmp_path / "some.lock"
    lock.write_text("# two\npytest\nnumpy\n")
    installer = [sys.executable, str(ROOT / "requirements" / "install.py"), str(lock), "--no-index"]
    done = subprocess.run(installer, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1].split(" s  ")[1]) == (0, "2 packages installed"), done.stdout
    lock.write_text("no-such-package-anywhere==1\n")
    done = subprocess.run(installer, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "no-such-package-anywhere" in done.stdout
