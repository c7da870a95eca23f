"""Tasks and advantages from outside: by module, by file, by an installed package's entry point; nothing in the package is edited."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from megatron_entropic.algorithms import group_advantages, leave_one_out_advantages, make_advantage
from megatron_entropic.config import TaskConfig
from megatron_entropic.config.loading import ConfigError, load_config
from megatron_entropic.observability.metrics import read_metrics
from megatron_entropic.start_checks.learning import check_learning
from megatron_entropic.system.named_functions import load_module
from megatron_entropic.tasks import make_task, verifier_spec
from tests.command_line import megatron_entropic

OUTSIDE = """
import dataclasses
from megatron_entropic.tasks.decompose import make_decompose

@dataclasses.dataclass
class Seen:
    made: int = 0

SEEN = Seen()

def make(options, seed):
    SEEN.made += 1
    return make_decompose(options, seed)

def twice_the_mean_apart(rewards_PS):
    return 2 * (rewards_PS - rewards_PS.mean(dim=1, keepdim=True))

def of_another_shape(rewards_PS):
    return rewards_PS.mean(dim=1)

def not_finite(rewards_PS):
    return rewards_PS / 0

def a_list(rewards_PS):
    return rewards_PS.tolist()

def by_the_spread(rewards_PS):
    return (rewards_PS - rewards_PS.mean(1, keepdim=True)) / rewards_PS.std(1, keepdim=True)

def of_two(rewards_PS, lengths_PS):
    return rewards_PS

def leaves(rewards_PS):
    raise SystemExit(4)

A_NUMBER = 3
"""
SMALL = (
    *("batch.prompts_per_step=4", "batch.samples_per_prompt=4", "rollout.engine=local", "parallel.tensor=1"),
    *("trainer.steps=2", "trainer.tensorboard=false", "trainer.export_hf=false"),
)


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a file of the user's, and an installed package whose entry points name it."""
    (tmp_path / "outside.py").write_text(OUTSIDE)
    info = tmp_path / "site" / "outside-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[megatron_entropic.tasks]\nours = outside:make\n[megatron_entropic.advantages]\ntwice = outside:twice_the_mean_apart\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("outside", None)


def test_the_advantages_of_the_table() -> None:
    rewards_PS = torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, 1.0]])
    assert torch.equal(make_advantage("grpo")(rewards_PS), group_advantages(rewards_PS))
    assert torch.equal(make_advantage("grpo_no_std")(rewards_PS), group_advantages(rewards_PS, normalize_std=False))
    assert torch.equal(make_advantage("rloo")(rewards_PS), leave_one_out_advantages(rewards_PS))


@pytest.mark.parametrize("name", ["outside:make", "{}/outside.py:make", "ours"])
def test_a_task_by_module_file_or_entry_point(outside: Path, name: str) -> None:
    cfg = load_config("quickstart", [f"task.name={name.format(outside)}"]).task
    assert cfg.name == name.format(outside)
    task = make_task(cfg, 3)
    assert task.problem(5) == make_task(TaskConfig(name="decompose"), 3).problem(5)
    spec = verifier_spec(cfg, 3, task)
    assert spec is None or not spec.factory.startswith("ours")


@pytest.mark.parametrize("name", ["outside:twice_the_mean_apart", "{}/outside.py:twice_the_mean_apart", "twice"])
def test_an_advantage_by_module_file_or_entry_point(outside: Path, name: str) -> None:
    cfg = load_config("quickstart", [f"algorithm.advantage={name.format(outside)}"])
    check_learning(cfg, 100)
    advantages_PS = make_advantage(cfg.algorithm.advantage)(torch.tensor([[0.0, 1.0]]))
    assert advantages_PS.tolist() == [[-1.0, 1.0]]


def test_a_file_is_run_once_and_may_hold_dataclasses(outside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(outside)
    module = load_module("outside.py")
    assert load_module(str(outside / "outside.py")) is module
    assert module.SEEN.made == 0


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("of_another_shape", r"gave \[4\], not a real torch tensor of the rewards' shape \[4, 8\]"),
        ("a_list", r"gave list, not a real torch tensor of the rewards' shape \[4, 8\]"),
        ("not_finite", r"advantages \[nan, .* of a prompt with the rewards \[0.0, "),
        ("by_the_spread", r"advantages \[nan, .* of a prompt with the rewards \[0.0, 0.0, 0.0, "),
        ("of_two", r"TypeError: of_two\(\) missing 1 required positional argument"),
        ("leaves", r"SystemExit: 4, .*outside.py:\d+"),
        ("no_such", "outside.py has no function no_such"),
        ("twice_the_mean", "did you mean 'twice_the_mean_apart'"),
        ("A_NUMBER", "A_NUMBER is no function but int"),
    ],
)
def test_a_bad_advantage_ends_before_anything_starts(outside: Path, function: str, message: str) -> None:
    cfg = load_config("quickstart", [f"algorithm.advantage={outside}/outside.py:{function}"])
    with pytest.raises(ConfigError, match=f"algorithm.advantage=.*{message}"):
        check_learning(cfg, 100)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("algorithm.advantage=grop", "did you mean 'grpo'"),
        ("algorithm.advantage=mine", "is none of grpo, grpo_no_std, rloo, twice, and no package.module:function or file.py:function"),
        ("task.name=our", "did you mean 'ours'"),
    ],
)
def test_the_nearest_name_counts_those_of_installed_packages(outside: Path, setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("quickstart", [setting])


def test_two_packages_that_bring_one_name(outside: Path) -> None:
    other = outside / "site" / "other-1.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (other / "entry_points.txt").write_text("[megatron_entropic.tasks]\nours = elsewhere:make\n")
    with pytest.raises(ValueError, match=r"ours: several installed packages .*: elsewhere:make, outside:make"):
        make_task(TaskConfig(name="ours"), 0)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"task.name=.*: no file {tmp_path}/none.py"):
        make_task(TaskConfig(name=f"{tmp_path}/none.py:make"), 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("open('nowhere')", "FileNotFoundError: .*nowhere.*faulty.py:2"),
        ("None.x", "AttributeError: .*faulty.py:2"),
        ("raise ValueError('boom')", "ValueError: boom, .*faulty.py:2"),
        ("raise SystemExit(4)", "SystemExit: 4, .*faulty.py:2"),
        ("def broken(", "SyntaxError: .*faulty.py, line 2"),
        ("import not_installed", ".*faulty.py needs the package not_installed"),
    ],
)
def test_a_fault_of_the_file_itself_is_named_with_setting_and_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "faulty.py").write_text(f"def make(options, seed): ...\n{text}\n")
    with pytest.raises(ValueError, match=f"task.name={tmp_path}/faulty.py:make: {message}"):
        make_task(TaskConfig(name=f"{tmp_path}/faulty.py:make"), 0)


def test_a_fault_of_the_function_is_named_with_setting_and_line(tmp_path: Path) -> None:
    (tmp_path / "careless.py").write_text("def make(options, seed):\n    return int('x')\n")
    with pytest.raises(ValueError, match=r"task\.name=.*careless\.py:make: ValueError: invalid literal.*careless\.py:2"):
        make_task(TaskConfig(name=f"{tmp_path}/careless.py:make"), 0)


def test_a_file_imports_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_rules.py").write_text("from megatron_entropic.tasks.decompose import make_decompose\n")
    (tmp_path / "rules.py").write_text("from neighbour_of_rules import make_decompose as make\n")
    assert make_task(TaskConfig(name=f"{tmp_path}/rules.py:make"), 0).problem(0).prompt


def test_a_relative_file_is_the_same_file_from_another_folder(outside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(outside)
    cfg = load_config("quickstart", ["task.name=outside.py:make", "algorithm.advantage=./outside.py:twice_the_mean_apart"])
    (outside / "elsewhere").mkdir()
    monkeypatch.chdir(outside / "elsewhere")
    assert cfg.task.name == f"{outside}/outside.py:make"
    assert make_task(cfg.task, 0).problem(0).prompt
    assert make_advantage(cfg.algorithm.advantage)(torch.tensor([[0.0, 1.0]])).tolist() == [[-1.0, 1.0]]


RECIPE = """
from dataclasses import dataclass, replace
from recipes.quickstart import quickstart

@dataclass
class Mine:
    steps: int = {steps}

def mine():
    base = quickstart()
    return replace(base, trainer=replace(base.trainer, steps=Mine().steps))
"""


def test_a_recipe_file_is_read_anew_each_time_and_may_hold_dataclasses(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.py"
    for steps in (3, 4):
        recipe.write_text(RECIPE.format(steps=steps))
        assert load_config(str(recipe)).trainer.steps == steps


@pytest.mark.slow
@pytest.mark.distributed
def test_it_trains(outside: Path) -> None:
    """Task and advantage of a file with a space in its path; the verifier's process finds the file too."""
    folder = outside / "my code"
    folder.mkdir()
    file = (outside / "outside.py").rename(folder / "rules.py")
    run = outside / "run"
    done = megatron_entropic(
        "train", "quickstart", f"run.dir={run}", f"task.name={file}:make", f"algorithm.advantage={file}:twice_the_mean_apart", *SMALL,
        timeout=300,
    )  # fmt: skip
    assert done.code == 0, done.output
    metrics = read_metrics(run / "metrics.jsonl")
    assert len(metrics) == 2
    assert all(line["grad_norm"] > 0 and line["reward/failures"] == 0 for line in metrics)
