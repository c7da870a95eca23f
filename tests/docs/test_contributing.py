"""CONTRIBUTING.md: its recipes, followed as they stand from an empty folder, train with one of each thing."""

import json
import math
import os
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from megatron_entropic.config.loading import field_names
from megatron_entropic.observability.metrics import read_metrics
from megatron_entropic.rollout.record_layout import RecordedRollout
from megatron_entropic.rollout.recording import read_rollouts
from tests.command_line import ROOT

PAGE = (ROOT / "CONTRIBUTING.md").read_text()
FILES = dict(re.findall(r"```(?:python|toml)\n# (\S+)\n(.*?)```", PAGE, flags=re.DOTALL))
COMMANDS = [
    line for block in re.findall(r"```bash\n(.*?)```", PAGE.replace("\\\n", " "), flags=re.DOTALL) for line in block.splitlines()
]
TRAIN = "megatron-entropic train my_run.py"
FROM_FILES = COMMANDS[: COMMANDS.index("pip install .")]
BY_NAME = COMMANDS[len(FROM_FILES) :]


def together(commands: list[str], name: str) -> list[str]:
    """The commands with one run in the place of all runs, which has the settings of all."""
    settings: dict[str, str] = {}
    for command in commands:
        if command.startswith(TRAIN):
            settings |= dict(setting.split("=", 1) for setting in shlex.split(command.removeprefix(TRAIN)))
    others = [command for command in commands if not command.startswith(TRAIN)]
    return [*others, f"{TRAIN} {shlex.join(f'{field}={value}' for field, value in (settings | {'run.name': name}).items())}"]


def followed(folder: Path, commands: list[str]) -> None:
    """Runs the commands in a folder with the page's files; what pip installs goes into one beside it."""
    site = folder.parent / "site"
    environ = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": f"{ROOT}:{site}"}
    environ |= {"PIP_TARGET": str(site), "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    script = "\n".join(["set -euo pipefail", *commands])
    done = subprocess.run(["bash", "-c", script], cwd=folder, env=environ, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.distributed
def test_one_of_each_from_files_and_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text)
    followed(folder, together(FROM_FILES, "from_files"))
    followed(folder, together(BY_NAME, "by_name"))
    for name in ("from_files", "by_name"):
        check_effects(folder / "runs" / name)

    halves = {record.reward for record in read_rollouts(folder / "runs" / "from_files" / "rollouts", 0)}
    assert 0.5 in halves, "the reward's"
    prompts = [record.problem.prompt for record in read_rollouts(folder / "runs" / "from_files" / "rollouts", 0)]
    assert min(int(prompt.rstrip("=")) for prompt in prompts) >= 500, "the task's option"
    exported = json.loads((folder / "runs" / "by_name" / "hf" / "config.json").read_text())
    assert exported["architectures"] == ["MineForCausalLM"]


def check_effects(run: Path) -> None:
    """What each of the page's pieces leaves in metrics.jsonl and beside it."""
    first, second = read_metrics(run / "metrics.jsonl")
    records = read_rollouts(run / "rollouts", 0)
    assert len(records) == 16, "the recipe's batch"
    assert {record.rollout.server for record in records} == {"mine"}, "the engine's signature"
    assert (run / "rewards.csv").read_text() == f"1,{first['reward/mean']}\n2,{second['reward/mean']}\n", "the tracker's table"
    assert (first["control/alpha"], first["control/target_entropy"]) == (0.0, 0.85)
    assert second["control/alpha"] == pytest.approx(2 * (first["policy/entropy"] - 0.85)), "the kind's rule"
    log_probs = [log_prob for record in records for log_prob in record.rollout.log_probs.astype(float)]
    likely = sum(math.exp(log_prob) for log_prob in log_probs) / len(log_probs)
    assert first["control/actuated_fraction"] == pytest.approx(likely, rel=1e-4), "the actuator's weights"
    assert first["control/active_fraction"] == pytest.approx(off_the_median(records)), "the advantage's zeros"
    assert 0 < first["control/active_fraction"] < 1
    assert first["loss/policy"] == 0.0, "CISPO's value where ratios are 1; PPO's is minus the mean advantage"
    assert first["grad_norm"] > 0


def off_the_median(records: list[RecordedRollout]) -> float:
    """The fraction of tokens in samples whose reward is not the lower median of their prompt's four."""
    lengths = [len(record.rollout.response_ids) for record in records]
    groups = [records[start : start + 4] for start in range(0, len(records), 4)]
    medians = [sorted(record.reward for record in group)[1] for group in groups for _ in group]
    off = [length for record, length, median in zip(records, lengths, medians, strict=True) if record.reward != median]
    return sum(off) / sum(lengths)


def test_every_file_is_used_and_every_command_is_a_run() -> None:
    """What the two runs above leave out would not be noticed otherwise."""
    shown = " ".join(COMMANDS) + FILES["pyproject.toml"] + FILES["my_reward.py"]
    assert [name for name in FILES if name.removesuffix(".py") not in shown] == ["pyproject.toml"]
    assert len(FILES) == 11
    assert all(command.startswith((TRAIN, "pip install", "cp -r", "sed -i")) for command in COMMANDS)


@pytest.mark.parametrize("row", re.findall(r"^\| \[an? .*\|$", PAGE, flags=re.MULTILINE))
def test_the_table_names_what_there_is(row: str) -> None:
    """Anchors, settings, folders, tables and groups."""
    things, setting, folder, table, group = (cell.strip() for cell in row.strip("|").split("|"))
    headings = {f"#{heading.lower().replace(' ', '-')}" for heading in re.findall(r"^### (.*)$", PAGE, flags=re.MULTILINE)}
    assert set(re.findall(r"\((#[a-z-]+)\)", things)) <= headings
    named = re.findall(r"`([a-z_]+\.[a-z_]+)`", setting)
    assert set(named) <= set(field_names())
    assert not folder or any((ROOT / base / folder.strip("`")).is_dir() for base in (".", "megatron_entropic"))
    if table:
        name, file = re.findall(r"`([^`]+)`", table)
        module = import_module(f"megatron_entropic.{file.removesuffix('.py').replace('/', '.')}")
        assert getattr(module, name)
        assert group.strip("`") in {value for constant, value in vars(module).items() if constant.endswith("_ENTRY_POINTS")}
        assert f'"{group.strip("`")}" = ' in FILES["pyproject.toml"]
