"""docs/your_model_your_task.md: followed as it stands, from an empty folder, it ends in a trained model."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_entropic.config import TaskConfig
from megatron_entropic.config.loading import ConfigError, load_config
from megatron_entropic.observability.metrics import read_metrics
from megatron_entropic.tasks import make_task
from tests.command_line import ROOT

BLOCKS = re.findall(r"```(python|bash)\n(.*?)```", (ROOT / "docs" / "your_model_your_task.md").read_text(), flags=re.DOTALL)


@pytest.mark.slow
@pytest.mark.distributed
def test_followed_as_it_stands(tmp_path: Path) -> None:
    """The task's file is written where the page says, everything else goes through bash."""
    (_, task), (_, check), *commands = BLOCKS
    (tmp_path / "even_sums.py").write_text(task)
    (tmp_path / "check.py").write_text(check)
    script = "\n".join(["set -euo pipefail", "python check.py", *(text for kind, text in commands if kind == "bash")])
    environ = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rewards = [line["reward/mean"] for line in read_metrics(tmp_path / "runs" / "even" / "metrics.jsonl")]
    assert sum(rewards[-10:]) / 10 > sum(rewards[:10]) / 10 + 0.15
    scored = json.loads((tmp_path / "runs" / "even" / "evaluation.json").read_text())
    assert (scored["task"], scored["avg"] > 0.6) == ("even_sums:make", True)
    assert re.search(r"324=\d+\+\d+", done.stdout)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:make", "no module no_such_module in .* or on PYTHONPATH"),
        ("megatron_entropic.tasks.addition:no", "megatron_entropic.tasks.addition has no function no"),
        ("needy:make", "needy needs the package not_installed, which is not installed"),
    ],
)
def test_a_task_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str) -> None:
    (tmp_path / "needy.py").write_text("import not_installed.part\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(ValueError, match=f"task.name={name}: {message}"):
        make_task(TaskConfig(name=name), 0)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("decompos", "did you mean 'decompose'"), ("my_task", "no package.module:function"), (":x", "is none of decompose")],
)
def test_a_name_that_is_none(name: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=hint):
        load_config("quickstart", [f"task.name={name}"])
