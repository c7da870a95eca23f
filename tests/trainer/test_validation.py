"""Validation while training: training does not notice it, signals and kills in its midst change nothing, the best checkpoint stays."""

import filecmp
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from megatron_entropic.checkpoint_files.store import CheckpointStore
from megatron_entropic.config import Config
from megatron_entropic.config.loading import load_config, save_config
from megatron_entropic.distributed.parallel import initialize_parallel
from megatron_entropic.evaluation.results import results_at
from megatron_entropic.observability.metrics import read_metrics
from megatron_entropic.observability.plotting.plots import panels_of
from megatron_entropic.observability.run_data import load_run
from megatron_entropic.rollout.recording import read_rollouts, recorded_steps
from megatron_entropic.system.stop_signal import StopRequested, handle_stop_signals
from megatron_entropic.trainer import train
from tests.run_ranks import RankFailedError, run_ranks
from tests.tiny_models import TINY_DECOMPOSE

pytestmark = [pytest.mark.slow, pytest.mark.distributed]
STEPS = 5
PROBLEMS, SAMPLES = 12, 3
ANSWERS = PROBLEMS * (SAMPLES + 1)
"""Of one validation of the set `own`, the greedy ones too."""
SETTINGS = (
    "parallel.tensor=1",
    "batch.prompts_per_step=4",
    "batch.samples_per_prompt=4",
    "batch.max_tokens_per_micro_batch=256",
    "optimizer.lr=1e-3",
    "rollout.engine=local",
    "rollout.max_new_tokens=8",
    f"trainer.steps={STEPS}",
    "trainer.tensorboard=false",
    "trainer.export_hf=false",
    "checkpoint.every=4",
    "checkpoint.keep=1",
)
TASK = """import os
from pathlib import Path
from megatron_entropic.tasks.decompose import Decompose

ORDER = Path(__file__).with_name("order")


class Interrupted(Decompose):
    \"\"\"Decompose; a file says after how many scores which signal this process gets, once.\"\"\"

    def score(self, problem, response):
        if ORDER.exists():
            left, signum = map(int, ORDER.read_text().split())
            ORDER.write_text(f"{left - 1} {signum}")
            if left == 0:
                ORDER.unlink()
                os.kill(os.getpid(), signum)
        return super().score(problem, response)


def make(options, seed):
    return Interrupted(seed=seed, **options)
"""


def run_rank(cfg: Config) -> str:
    handle_stop_signals(60.0)
    try:
        train(cfg, initialize_parallel(cfg.parallel, cfg.trainer.seed))
    except StopRequested:
        return "stopped"
    return "done"


def run(folder: Path, *settings: str) -> list[str]:
    cfg = load_config("quickstart", [*SETTINGS, f"run.dir={folder}", *settings])
    save_config(cfg, folder / "config.yaml")
    return run_ranks(run_rank, cfg.parallel.world_size, cfg)


def metrics_of(folder: Path, *without: str) -> list[dict[str, Any]]:
    lines = read_metrics(folder / "metrics.jsonl")
    return [{name: value for name, value in line.items() if not name.startswith(("time/", "perf/", *without))} for line in lines]


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("task") / "my task.py"
    file.write_text(TASK)
    return file


@pytest.fixture(scope="module")
def validated(task: Path) -> tuple[str, ...]:
    """Settings: every second step, at the start, and at the end, which is the fifth."""
    own = f"{{name: own, task: '{task}:make', limit: {PROBLEMS}, samples: {SAMPLES}, greedy: true, top_p: 0.9, pass_at: 2}}"
    sets = f"[{own}, {{name: decompose, limit: 3, samples: 2, max_new_tokens: 9}}]"
    return "validation.every=2", "validation.at_start=true", f"validation.sets={sets}", "validation.best=validation/own/length"


@pytest.fixture(scope="module")
def whole(validated: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert run(folder, *validated) == ["done"]
    return folder


def test_training_is_bit_identical_with_and_without_validation(whole: Path, tmp_path: Path) -> None:
    assert run(tmp_path / "run") == ["done"]
    assert metrics_of(whole, "validation/") == metrics_of(tmp_path / "run", "validation/")
    for step in range(STEPS):
        name = f"rollouts/step-{step:06d}.safetensors.zst"
        assert filecmp.cmp(whole / name, tmp_path / "run" / name, shallow=False)


def test_metrics_are_there_in_the_steps_that_were_validated(whole: Path) -> None:
    lines = read_metrics(whole / "metrics.jsonl")
    assert [line["step"] for line in lines if "validation/own/avg" in line] == [1, 3, 4]
    assert [line["time/validation_s"] is not None for line in lines] == [False, True, False, True, True]
    assert 0.5 < lines[0]["validation/own/start"] <= 1.0
    for line in lines:
        if "validation/own/avg" in line:
            own = {name.rpartition("/")[2]: value for name, value in line.items() if name.startswith("validation/own/")}
            assert own["avg_low"] <= own["avg"] <= own["avg_high"]
            assert own["avg"] <= own["pass"] <= 1.0
            assert 0.0 < own["greedy"] <= 1.0
            assert {"majority", "length", "truncated", "distinct"} <= set(own)
            assert "validation/decompose/greedy" not in line


def test_answers_are_recorded_as_rollouts_are_and_scores_problem_by_problem(whole: Path) -> None:
    folder = whole / "validation" / "own"
    assert recorded_steps(folder) == recorded_steps(folder / "greedy") == [0, 2, 4, 5]
    records = read_rollouts(folder, 4)
    assert len(records) == PROBLEMS * SAMPLES
    assert {record.rollout.first_version for record in records} == {4}
    content = json.loads((folder / "step-000004.json").read_text())
    assert [reward for problem in content["problems"] for reward in problem["rewards"]] == [record.reward for record in records]
    assert content["statistics"]["avg"] == read_metrics(whole / "metrics.jsonl")[3]["validation/own/avg"]
    results = results_at(whole)
    assert results.model == f"{whole} after 5 steps"
    assert [scores.name for scores in results.sets] == ["decompose", "own"]


def test_the_report_has_a_panel_for_each_set(whole: Path) -> None:
    run = load_run(whole)
    panels = panels_of(run)
    assert [name for name in panels if name.startswith("validation_")] == ["validation_decompose", "validation_own"]
    ax = Figure().add_subplot()
    panels["validation_own"](ax, run)
    drawn = {line.get_label(): line.get_xdata() for line in ax.lines}
    assert list(drawn["mean of samples"]) == [0, 2, 4, 5]
    assert list(drawn["greedy"]) == [2, 4, 5]
    assert len(ax.collections) == 1


def best_of(folder: Path) -> tuple[int, float]:
    """(steps, value) of the first policy with the lowest value of the metric, by what was recorded."""
    found = {
        line["step"] + 1: line["validation/own/length"]
        for line in read_metrics(folder / "metrics.jsonl")
        if "validation/own/length" in line
    }
    return min(found.items(), key=lambda item: (item[1], item[0]))


def test_the_best_checkpoint_is_kept_beside_the_newest(whole: Path) -> None:
    store = CheckpointStore(whole / "checkpoints")
    steps, _ = best_of(whole)
    assert store.best() == f"step-{steps:06d}"
    assert store.names() == sorted({f"step-{steps:06d}", f"step-{STEPS:06d}"})
    assert (whole / "checkpoints" / "best" / "manifest.json").is_file()


def test_a_signal_or_a_kill_in_the_midst_of_validation_changes_nothing(
    task: Path, whole: Path, validated: tuple[str, ...], tmp_path: Path
) -> None:
    folder, order = tmp_path / "run", task.with_name("order")
    order.write_text(f"{ANSWERS + 20} {signal.SIGTERM.value}")  # at the start is the first validation, after two steps the second
    assert run(folder, *validated) == ["stopped"]
    lines = read_metrics(folder / "metrics.jsonl")
    assert len(lines) == 2
    assert "validation/own/avg" not in lines[-1]
    order.write_text(f"{ANSWERS + 20} {signal.SIGKILL.value}")  # the one that was left out, then that after four steps
    with pytest.raises(RankFailedError):
        run(folder, *validated)
    assert "validation/own/avg" in read_metrics(folder / "metrics.jsonl")[1]
    assert run(folder, *validated) == ["done"]
    assert not order.exists()
    assert metrics_of(folder) == metrics_of(whole)
    assert CheckpointStore(folder / "checkpoints").best() == CheckpointStore(whole / "checkpoints").best()
    for step in (0, 2, 4, 5):
        name = f"validation/own/step-{step:06d}"
        assert (folder / f"{name}.json").read_bytes() == (whole / f"{name}.json").read_bytes()
        assert filecmp.cmp(folder / f"{name}.safetensors.zst", whole / f"{name}.safetensors.zst", shallow=False)


def test_another_layout_answers_the_same_and_all_ranks_know_the_best(whole: Path, validated: tuple[str, ...], tmp_path: Path) -> None:
    assert run(tmp_path / "run", *validated, "parallel.data=2", "trainer.steps=2") == ["done", "done"]
    assert (tmp_path / "run/validation/own/step-000000.json").read_bytes() == (whole / "validation/own/step-000000.json").read_bytes()
    assert CheckpointStore(tmp_path / "run" / "checkpoints").best() == "step-000002"


def test_a_run_that_ended_is_validated_when_it_is_resumed_with_sets(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    more = "validation.sets=[{name: later, task: decompose, limit: 4, samples: 1}]"
    assert run(tmp_path / "run", "validation.every=2", more, "validation.best=validation/later/avg") == ["done"]
    last = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]
    assert 0.0 <= last["validation/later/avg"] <= 1.0
    assert "validation/own/avg" in last
    assert os.readlink(tmp_path / "run" / "checkpoints" / "best") == f"step-{STEPS:06d}"


def test_mixed_data_and_a_curriculum_go_on_as_without_validation(tmp_path: Path) -> None:
    for name, first in (("a", 10), ("b", 50)):
        rows = [{"question": f"{number}+{number + 7}=", "answer": 2 * number + 7} for number in range(first, first + 24)]
        (tmp_path / f"{name} #1.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = ", ".join(
        f"{{path: '{tmp_path / name} #1.jsonl', verifier: exact, weight: {weight}}}" for name, weight in (("a", 2), ("b", 1))
    )
    data = (
        f"model.hf_path={TINY_DECOMPOSE.with_name('tiny-addition')}",
        "task.name=data",
        f"data.train=[{sources}]",
        "data.held_out=0.3",
        "data.curriculum=true",
        "data.curriculum_low=0.3",
        "checkpoint.every=2",
        "reward.workers=1",
    )
    of_file = f"{{name: file, path: '{tmp_path / 'b #1.jsonl'}', verifier: exact, samples: 1, limit: 6}}"
    more = ("validation.every=2", f"validation.sets=[{{name: held, samples: 2}}, {of_file}]")
    plain, with_sets, resumed = (tmp_path / name for name in ("plain", "sets", "resumed"))
    assert run(plain, *data, "trainer.steps=4") == ["done"]
    assert run(with_sets, *data, *more, "trainer.steps=4") == ["done"]
    assert metrics_of(with_sets, "validation/") == metrics_of(plain, "validation/")
    assert run(resumed, *data, *more, "trainer.steps=2") == run(resumed, *data, *more, "trainer.steps=4") == ["done"]
    assert metrics_of(resumed) == metrics_of(with_sets)
    held = {record.problem.prompt for record in read_rollouts(with_sets / "validation" / "held", 4)}
    trained = {record.problem.prompt for step in range(4) for record in read_rollouts(with_sets / "rollouts", step)}
    assert held
    assert held.isdisjoint(trained)
