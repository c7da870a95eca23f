"""The real-model lab with a tiny model in the place of the real one: interrupted, resumed, scored; and its page from made-up curves."""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_entropic.config.loading import ConfigError, save_config
from megatron_entropic.observability.metrics import METRIC_FIELDS, read_metrics
from megatron_entropic.system.folder_lock import FolderLock
from megatron_entropic.tasks.addition import make_addition
from recipes.lab import real_model
from recipes.lab.held_out_sums import make
from recipes.lab.real_model_numbers import Numbers, excursion, noise_of, numbers_of
from recipes.lab.real_model_page import NAME, write_page
from recipes.lab.real_model_progress import duration
from recipes.lab.real_model_runs import PLANS, SMOLLM2_135M, Plan, RealRun
from recipes.lab.real_model_training import GREEDY, SAMPLED, LabError, changed_settings, run_all, state_of
from recipes.lab.settling import moving_mean, settled_from
from recipes.lab.watched_command import Commands, Stopped
from tests.command_line import ROOT

TINY = dataclasses.replace(
    SMOLLM2_135M,
    recipe="quickstart",
    title="tiny",
    about="a tiny model",
    notes=("a note",),
    runs=(
        RealRun("start", "as it was", None, 0, trained=False),
        RealRun("ours-1.0-seed0", "ours", 1.0, 0, ("control.target_entropy=1.0", "control.target_unit=initial")),
        RealRun("grpo-seed0", "GRPO", None, 0, ("control.kind=none",)),
    ),
    overrides=(
        "rollout.engine=local",
        "parallel.tensor=1",
        "task.name=addition",
        "model.hf_path=models/tiny-addition",
        "batch.prompts_per_step=4",
        "batch.samples_per_prompt=4",
    ),
    updates=4,
    problems=6,
    samples=2,
    checkpoint_every=2,
)


def run_of(plan: Plan, name: str) -> RealRun:
    return plan.choose([name])[0]


def test_held_out_sums_are_those_that_no_seed_asks_in_training() -> None:
    options = SMOLLM2_135M.config(run_of(SMOLLM2_135M, "start")).task.options
    held_out = make({**options, "trained_seeds": 2, "trained_problems": 720}, seed=5)
    asked = {make_addition(options, seed).problem(index).prompt for seed in range(2) for index in range(720)}
    prompts = [held_out.problem(index).prompt for index in range(len(held_out.held_out))]
    assert len(prompts) == len(set(prompts)) == 900 - len(asked) >= 64
    assert not asked & set(prompts)
    first = held_out.problem(0)
    assert (held_out.score(first, f"It is {first.data['total']}."), held_out.score(first, "It is 0.")) == (1.0, 0.0)
    assert make({**options, "trained_seeds": 2, "trained_problems": 720}, seed=0).held_out == held_out.held_out
    with pytest.raises(ValueError, match="no run was trained on; ask for fewer"):
        held_out.problem(len(prompts))


def test_every_run_of_every_plan_can_be_configured_and_has_held_out_sums() -> None:
    for plan in PLANS.values():
        assert len({run.name for run in plan.runs}) == len(plan.runs)
        assert all(run.seed < 2 for run in plan.runs)
        targets = {run.name: plan.config(run).control for run in plan.runs}
        assert all(targets[run.name].target_entropy == run.target for run in plan.runs if run.name.startswith("ours"))
        assert {control.target_unit for name, control in targets.items() if name.startswith("ours")} == {"initial"}
        assert plan.held_out()[0].startswith("task.name=")
        cfg = plan.config(plan.runs[-1])
        assert (cfg.trainer.steps, cfg.checkpoint.every, cfg.batch.prompts_per_step) == (60, 10, 12)
    with pytest.raises(ConfigError, match=r"--only gpro: no such run; there are start, ours-1.0-seed0"):
        SMOLLM2_135M.choose(["gpro"])
    with pytest.raises(ConfigError, match="sums are left that no run is trained on, 64 are needed"):
        dataclasses.replace(SMOLLM2_135M, updates=600).held_out()


def test_settling_excursion_and_noise_are_what_they_are_said_to_be() -> None:
    entropy = [2.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.1]
    smooth = moving_mean(entropy)
    assert smooth[:3] == [2.0, 1.5, pytest.approx(5 / 3)]
    assert smooth[5] == 1.8
    assert settled_from(smooth, 2.0) == 6  # the first place without the dip among its five
    assert settled_from([2.0, 3.0], 2.0) is None
    assert settled_from([2.0, math.nan], 2.0) is None
    assert excursion(entropy[:3], 2.0) == -0.5
    assert excursion([], 2.0) is excursion([1.0], None) is None
    assert noise_of([1.0, 3.0, 1.0, 3.0]) == pytest.approx(math.sqrt(2))
    assert noise_of([1.0, 2.0]) is None
    assert [duration(seconds) for seconds in (40, 750, 21_910)] == ["40 s", "12 min", "6 h 05 min"]


def fake_run(plan: Plan, run: RealRun, out: Path, entropies: list[float], *, scored: bool) -> None:
    """A run's folder with a made-up curve."""
    folder = out / run.name
    save_config(plan.config(run), folder / "config.yaml")
    lines = []
    for step, entropy in enumerate(entropies):
        alpha = None if "grpo" in run.name else 0.25
        made_up = {"step": step, "policy/entropy": entropy, "control/alpha": alpha, "reward/mean": 0.5, "time/step_s": 40.0}
        lines.append(json.dumps(dict.fromkeys(METRIC_FIELDS) | made_up | {"control/measurement_noise": 0.125}))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "code.txt").write_text("commit a\ncommit b\ncommit b\n")
    if scored:
        fake_scores(plan, folder)


def fake_scores(plan: Plan, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    scores = {"prompts": plan.problems, "samples": plan.samples, "avg": 0.25, "pass_at": {"2": 0.5, "4": 0.6, "8": 0.75}}
    (folder / GREEDY).write_text(json.dumps(scores | {"samples": 1, "avg": 0.375, "pass_at": {}}))
    (folder / SAMPLED).write_text(json.dumps(scores))


def test_the_page_says_what_was_found_and_what_is_missing(tmp_path: Path) -> None:
    plan, out, docs = SMOLLM2_135M, tmp_path / "runs", tmp_path / "docs"
    with pytest.raises(ValueError, match=r"no run has begun yet; run python -m recipes.lab --model smollm2_135m first"):
        write_page(plan, out, docs)
    # From update 30 on at +5% and +1% by turns, after an excursion of one update at 28.
    curve = [2.0] * 20 + [1.5] * 5 + [2.0] * 2 + [1.0, 2.0] + [2.1 if update % 2 else 2.02 for update in range(30, 61)]
    fake_run(plan, run_of(plan, "ours-1.0-seed0"), out, curve, scored=True)
    fake_run(plan, run_of(plan, "grpo-seed0"), out, curve[:41], scored=False)
    fake_scores(plan, out / "start")
    page = write_page(plan, out, docs)
    text, figures = page.read_text(), json.loads((docs / f"{NAME}.json").read_text())
    assert page == docs / f"{NAME}.md"
    assert (docs / "images" / "lab_smollm2_135m.png").stat().st_size > 10_000
    assert "![entropy, alpha and reward](images/lab_smollm2_135m.png)" in text
    assert "**6 of 8 runs are missing or incomplete.**" in text
    assert "grpo-seed0 (41 of 60 updates, not scored)" in text
    assert "Missing: ours-0.8-seed0, ours-0.6-seed0, aent-seed0, ours-1.0-seed1, ours-0.8-seed1." in text
    row = "| ours (default settings), seed 0 | 2.000 | 1: 2.000 | 2.059 | +2.9% ± 0.5% | 33 | -20.0% | -50.0% | 0.057 | 0.500 |"
    assert f"{row} 0.375 | 0.250 | 0.750 |" in text
    assert "| GRPO, seed 0 (**41 of 60 updates**) | 2.000 | - | 2.060 | - | - | - | - | 0.057 | 0.500 | - | - | - |" in text
    assert "| the model as it was | - | - | - | - | - | - | - | - | - | 0.375 | 0.250 | 0.750 |" in text
    assert "0.125 (ours-1.0-seed0)" in text
    assert "Trained by commit a then commit b: ours-1.0-seed0, grpo-seed0." in text
    found = {run["name"]: run for run in figures["runs"]}
    assert found["ours-1.0-seed0"]["entropy"] == curve
    assert found["ours-1.0-seed0"]["settled"] == 33
    assert found["ours-0.6-seed0"]["updates"] == 0


def test_a_run_of_other_settings_is_named_and_not_gone_on_with(tmp_path: Path) -> None:
    run = run_of(TINY, "ours-1.0-seed0")
    other = dataclasses.replace(TINY, overrides=(*TINY.overrides, "control.actuator=surprisal"))
    fake_run(other, run, tmp_path, [2.0, 2.0], scored=False)
    assert changed_settings(tmp_path / run.name, TINY, run) == ["control.actuator: 'surprisal' then, 'signed' now"]
    with pytest.raises(LabError, match=r"was begun with other settings .*'surprisal' then, 'signed' now"):
        run_all(TINY, [run], tmp_path, Commands())
    assert state_of(tmp_path / run.name).text(TINY, run) == "2/4"


def run_tiny(out: Path, *names: str) -> list[str]:
    with Commands() as commands:
        return run_all(TINY, TINY.choose(list(names)), out, commands)


@pytest.mark.slow
def test_a_run_is_trained_scored_and_made_only_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_tiny(tmp_path, "start", "ours*") == []
    printed = capfd.readouterr().out
    assert "0 of 2 runs are done; 2 to do" in printed
    assert "ours-1.0-seed0  4/4  entropy" in printed
    folder = tmp_path / "ours-1.0-seed0"
    assert not {"checkpoints", "hf"} & {path.name for path in folder.iterdir()}
    assert (ROOT / "models" / "tiny-addition" / "model.safetensors").is_file()  # of which start/hf was a link
    greedy, sampled = (json.loads((folder / name).read_text()) for name in (GREEDY, SAMPLED))
    assert (greedy["prompts"], greedy["samples"], greedy["temperature"]) == (6, 1, 0)
    assert (sampled["prompts"], sampled["samples"], sampled["temperature"], sampled["task"]) == (
        6,
        2,
        1,
        "recipes.lab.held_out_sums:make",
    )
    numbers: Numbers = numbers_of(TINY, run_of(TINY, "ours-1.0-seed0"), tmp_path)
    assert numbers.complete
    assert numbers.target == numbers.initial == read_metrics(folder / "metrics.jsonl")[-1]["control/target_entropy"]
    assert len(numbers.code) == 1
    assert numbers.changed == ()
    assert numbers_of(TINY, run_of(TINY, "start"), tmp_path).complete
    assert run_tiny(tmp_path, "start", "ours*") == []
    assert "2 of 2 runs are done; 0 to do" in capfd.readouterr().out
    assert "2 of 3 runs" not in write_page(TINY, tmp_path, tmp_path / "docs").read_text()


LAB = """
import dataclasses, sys
from recipes.lab import real_model
from tests.recipes.test_real_model_lab import TINY
real_model.PLANS["tiny"] = dataclasses.replace(TINY, model="tiny", updates=400)
real_model.main("tiny", sys.argv[1:])
"""


@pytest.mark.slow
def test_ctrl_c_saves_and_the_same_command_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "lab"
    command = [sys.executable, "-c", LAB, "--out", str(out), "--only", "grpo-seed0"]
    folder = out / "grpo-seed0"
    lab = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while state_of(folder).updates < 3 and lab.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    lab.send_signal(signal.SIGINT)
    _, errors = lab.communicate(timeout=120)
    assert lab.returncode == 75, errors
    assert "SIGINT: the run saves and stops; once more ends it without saving" in errors
    assert "stopped; the same command resumes from here" in errors
    before = read_metrics(folder / "metrics.jsonl")
    assert 3 <= len(before) < 400
    goal = len(before) + 2
    done = subprocess.run([*command, "--updates", str(goal)], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"grpo-seed0: resumes after about {len(before)} updates" in done.stdout
    after = read_metrics(folder / "metrics.jsonl")
    assert after[: len(before)] == before
    assert len(after) == goal


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["model.hf_path=nowhere/model"], "nowhere/model: there is no model; make it first: python -m recipes.smollm2"),
        (["--only", "ours"], "--only ours: no such run"),
        (["--updates", "0"], "--updates=0: at least 1 is needed"),
        (["--report", "control.kp=1"], "settings go before --report"),
        (["--report"], "no run has begun yet"),
    ):
        with pytest.raises(SystemExit) as ended:
            real_model.main("smollm2_135m", ["--out", str(tmp_path / "out"), *arguments])
        assert ended.value.code == 2
        assert message in capsys.readouterr().err


def test_a_second_signal_is_passed_on_too(tmp_path: Path) -> None:
    """A command that takes no notice of the first request."""
    stubborn = (
        "import signal, sys, time\n"
        "asked = []\n"
        "signal.signal(signal.SIGINT, lambda *_: asked.append(1) or (len(asked) > 1 and sys.exit(3)))\n"
        f"open({str(tmp_path / 'ready')!r}, 'w').close()\n"
        "while True: time.sleep(0.1)\n"
    )
    sent: list[float] = []

    def tick() -> None:
        if (tmp_path / "ready").exists() and (not sent or (len(sent) < 2 and time.monotonic() - sent[0] > 1.5)):
            sent.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGTERM)

    with Commands() as commands, pytest.raises(Stopped):
        commands.run([sys.executable, "-c", stubborn], tmp_path / "out.txt", tick)
    assert len(sent) == 2
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_lab_that_is_killed_keeps_its_folder_while_its_command_runs(tmp_path: Path) -> None:
    with FolderLock(tmp_path, "the lab") as lock, Commands(lock.descriptor) as commands:
        looks = f"import os; assert os.fstat({lock.descriptor}).st_ino == os.stat({str(lock.files[0])!r}).st_ino"
        assert commands.run([sys.executable, "-c", looks], tmp_path / "out.txt", lambda: None) == 0, (tmp_path / "out.txt").read_text()


def test_the_tiny_lab_is_still_the_command_without_a_model() -> None:
    def listed(*arguments: str) -> str:
        command = [sys.executable, "-m", "recipes.lab", *arguments, "--list"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert "decompose-on-grpo-0" in listed("--only", "decompose-on-grpo-*")
    assert "ours-1.0-seed0  ours (default settings): smollm2_135m control.target_entropy=1.0" in listed("--model", "smollm2_135m")
