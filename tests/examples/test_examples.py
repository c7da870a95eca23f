"""examples/: each is run as its docstring says, and does what it says."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_entropic.config.sweep import sweep_runs
from megatron_entropic.observability.history import read_history
from megatron_entropic.observability.metrics import read_metrics
from megatron_entropic.rollout.record_layout import RecordedRollout
from megatron_entropic.rollout.recording import read_rollouts
from tests.command_line import ROOT, megatron_entropic
from tests.running import Running

EXAMPLES = ROOT / "examples"
STEPS = 5
SMALL = (
    *["rollout.engine=local", "parallel.tensor=1", "batch.prompts_per_step=4", "batch.samples_per_prompt=4", f"trainer.steps={STEPS}"],
    *["checkpoint.every=1", "trainer.export_hf=false", "trainer.tensorboard=false", "reward.workers=1"],
)
HELD = """
import sys
sys.path.insert(0, "examples")
import torch
torch.set_num_threads(1)
from transformers_loop import entropic, train
controller = entropic(0.85)
held, rewards = train(30, controller)
print(sum(held[-10:]) / 10, sum(rewards[-10:]) / 10, controller.alpha)
assert not {"megatron", "vllm"} & set(sys.modules)
"""


@pytest.mark.slow
def test_entropy_is_held_in_a_plain_transformers_loop() -> None:
    """Against the pull of GRPO, which would have it at 0.76 by then: alpha is well below 0."""
    done = subprocess.run([sys.executable, "-c", HELD], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    held, reward, alpha = map(float, done.stdout.split())
    assert alpha < -0.1
    assert held == pytest.approx(0.85, abs=0.03)
    assert reward > 0.8


@pytest.mark.slow
@pytest.mark.distributed
def test_a_killed_sweep_over_task_and_reward_goes_on_past_a_task_that_fails(tmp_path: Path) -> None:
    """The first run is done, the second is killed with the sweep and resumed, tracker and all, the third cannot begin."""
    folder = tmp_path / "a sweep"
    folder.mkdir()
    (tmp_path / "broken.py").write_text("def broken(options, seed):\n    raise ValueError('no such problems')\n")
    tasks = f"task.name=examples/own_task.py:Sums,examples/own_reward.py:BalancedSums,{tmp_path}/broken.py:broken"
    own = (tasks, "task.options.low=300", "trainer.trackers=[examples/own_tracker.py:Table]")
    sweep = ("train", "quickstart", *SMALL, *own, f"run.dir={folder}", "--sweep")
    task, reward, broken = (run.cfg.run_dir for run in sweep_runs(sweep[1], sweep[2:-1])[1])
    with Running(reward.parent / "run", *sweep) as running:
        running.run_dir = reward
        assert running.wait_until(lambda: running.steps >= 2)
        running.process.kill()
        running.process.wait()
    assert read_history(task)[-1].code == 0, running.output
    assert len(read_metrics(reward / "metrics.jsonl")) < STEPS
    stamp = (task / "metrics.jsonl").stat().st_mtime_ns

    again = megatron_entropic(*sweep)
    assert again.code == 1, again.output
    assert again.left_behind == []
    assert (task / "metrics.jsonl").stat().st_mtime_ns == stamp, "what is done is not run again"
    assert f"failed  {broken}" in again.output
    assert "no such problems" in again.output
    assert "2 of 3 runs done" in again.output
    for run in (task, reward):
        check_example(run, partly=run is reward)


def check_example(run: Path, *, partly: bool) -> None:
    """Problems, rewards and the tracker's table."""
    records = read_rollouts(run / "rollouts", 0)
    assert min(int(record.problem.prompt.rstrip("=")) for record in records) >= 300, "the option's"
    assert [record.reward for record in records] == [pytest.approx(expected(record, partly=partly)) for record in records]
    assert any(0.5 < record.reward < 1 for record in records) == partly
    check_table(run)


def expected(record: RecordedRollout, *, partly: bool) -> float:
    """The reward by the examples' rules, told once more."""
    sought = int(record.problem.prompt.rstrip("="))
    terms = re.fullmatch("([0-9]+)[+]([0-9]+)", record.rollout.text)
    if terms is None or int(terms[1]) + int(terms[2]) != sought:
        return 0.0
    return 1.0 - 0.5 * abs(int(terms[1]) - int(terms[2])) / sought if partly else 1.0


def check_table(run: Path) -> None:
    """The tracker's rows are the metrics'."""
    rows = list(csv.DictReader((run / "table.csv").open()))
    lines = read_metrics(run / "metrics.jsonl")
    assert len(rows) == STEPS
    assert [(row["step"], float(row["reward/mean"])) for row in rows] == [
        (str(n), line["reward/mean"]) for n, line in enumerate(lines, 1)
    ]


@pytest.mark.slow
def test_a_mix_of_two_files_is_drawn_by_weight_and_each_judged_in_its_own_way(tmp_path: Path) -> None:
    """A step of the example: three prompts of four from the first file, of the second only what its filter leaves."""
    small = ("trainer.steps=1", "trainer.export_hf=false", "trainer.tensorboard=false", "trainer.report=false", "reward.workers=1")
    done = megatron_entropic("train", "examples/own_data_mix.yaml", f"run.dir={tmp_path / 'run'}", *small)
    assert done.code == 0, done.output
    assert "sums.jsonl" in done.output
    records = read_rollouts(tmp_path / "run" / "rollouts", 0)
    sources = [Path(record.problem.data["source"]).name for record in records]
    assert (sources.count("sums.jsonl"), sources.count("small_sums.jsonl")) == (24, 8)
    filtered = {row["ask"] for row in map(json.loads, (EXAMPLES / "data" / "small_sums.jsonl").open()) if row["difficulty"] <= 2}
    for record, source in zip(records, sources, strict=True):
        text, answer = record.rollout.text, record.problem.data["answer"]
        if source == "small_sums.jsonl":
            assert record.problem.prompt in filtered
            assert record.reward == float(text == answer)
        elif re.fullmatch("[0-9]{1,4}", text):
            assert record.reward == float(int(text) == int(answer))
    assert 0 < sum(record.reward for record in records) < len(records)


def test_a_resumed_table_has_each_step_once(tmp_path: Path) -> None:
    code = (
        "from own_tracker import Table\nfrom pathlib import Path\n"
        "for first, known in ((0, None), (1, 'table.csv')):\n"
        f"    table = Table(Path({str(tmp_path)!r}), known, first)\n"
        "    [table.log(step, {'reward/mean': step}) for step in range(first, 3)]\n"
        "    table.close(); table.close()\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=EXAMPLES, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert [(row["step"], row["reward/mean"]) for row in rows] == [("1", "0"), ("2", "1"), ("3", "2")]


def test_examples_are_short_and_say_how_they_are_run() -> None:
    shown = (ROOT / "docs" / "examples.md").read_text()
    for path in [*sorted(EXAMPLES.glob("own_*")), EXAMPLES / "transformers_loop.py"]:
        text = path.read_text()
        assert len(text.splitlines()) < 150, path
        assert re.search(rf"(megatron-entropic train|python) .*examples/{path.name}", text), path
        assert f"examples/{path.name}" in shown, path
