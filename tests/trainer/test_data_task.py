"""Runs over mixed data with a curriculum: resumed, killed, stale, replayed under another layout, they ask and train the same."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megatron_entropic.checkpoint_files.store import CheckpointStore
from megatron_entropic.config import Config
from megatron_entropic.config.loading import load_config
from megatron_entropic.distributed.parallel import initialize_parallel
from megatron_entropic.observability.metrics import read_metrics
from megatron_entropic.rollout.recording import read_rollouts
from megatron_entropic.trainer import train
from tests.run_ranks import run_ranks
from tests.tiny_models import TINY_DECOMPOSE

pytestmark = [pytest.mark.slow, pytest.mark.distributed]
STEPS = 6
ADDITION = TINY_DECOMPOSE.with_name("tiny-addition")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An override: twelve sums as JSON Lines, and eight in Parquet, of which two are among those."""
    folder, rng = tmp_path_factory.mktemp("data #1"), random.Random(0)
    sums = [(rng.randint(10, 99), rng.randint(10, 99)) for _ in range(18)]
    lines = [json.dumps({"question": f"{one}+{other}=", "answer": one + other}) for one, other in sums[:12]]
    (folder / "easy.jsonl").write_text("\n".join(lines))
    rows = [{"prompt": [{"role": "user", "content": f"{one}+{other}="}], "label": str(one + other)} for one, other in sums[10:]]
    pq.write_table(pa.Table.from_pylist(rows), folder / "more.parquet")
    return (
        f"data.train=[{{path: '{folder / 'easy.jsonl'}', verifier: exact, weight: 2}}, "
        f"{{path: '{folder / 'more.parquet'}', verifier: exact, filter: 'len(prompt) == 6'}}]"
    )


def run(folder: Path, data: str, steps: int, *settings: str) -> list[dict[str, Any]]:
    """Metrics, without times, of the run in `folder`, trained up to `steps`."""
    base = (
        f"model.hf_path={ADDITION}",
        "task.name=data",
        "data.deduplicate=true",
        "data.curriculum=true",
        "data.curriculum_low=0.05",
        "data.curriculum_high=0.7",
        "data.curriculum_keep=0.1",
        "reward.workers=1",
        "batch.prompts_per_step=6",
        "batch.samples_per_prompt=4",
        "batch.max_tokens_per_micro_batch=256",
        "rollout.max_new_tokens=6",
        "parallel.tensor=1",
        "optimizer.lr=1e-4",
        "control.gains=fixed",
        "control.kp=5",
        "control.soft_setpoint=false",
        "checkpoint.every=2",
        "trainer.tensorboard=false",
        "trainer.export_hf=false",
    )
    engine = () if any(setting.startswith("rollout.engine=") for setting in settings) else ("rollout.engine=local",)
    cfg = load_config("quickstart", [*base, data, f"run.dir={folder}", f"trainer.steps={steps}", *engine, *settings])
    run_ranks(_train, cfg.parallel.world_size, cfg, timeout=300)
    return [
        {name: value for name, value in line.items() if not name.startswith(("time/", "perf/"))}
        for line in read_metrics(folder / "metrics.jsonl")
    ]


def _train(cfg: Config) -> None:
    train(cfg, initialize_parallel(cfg.parallel, cfg.trainer.seed))


def asked(folder: Path, step: int) -> list[tuple[str, str, float]]:
    """Source, prompt and reward of each rollout."""
    records = read_rollouts(folder / "rollouts", step)
    return [(Path(record.problem.data["source"]).name, record.problem.prompt, record.reward) for record in records]


@pytest.fixture(scope="module", params=[0, 1])
def whole(
    request: pytest.FixtureRequest, data: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[int, Path, list[dict[str, Any]]]:
    """(max_staleness, folder, metrics) of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return request.param, folder, run(folder, data, STEPS, f"rollout.max_staleness={request.param}")


def test_sources_are_mixed_and_prompts_passed_over(whole: tuple[int, Path, list[dict[str, Any]]]) -> None:
    _, folder, _ = whole
    prompts = [entry for step in range(STEPS) for entry in asked(folder, step)[::4]]
    sources = [source for source, _, _ in prompts]
    assert 0.2 < sources.count("more.parquet") / len(sources) < 0.6
    counts = {prompt: [name for _, name, _ in prompts].count(prompt) for _, prompt, _ in prompts}
    assert max(counts.values()) > min(counts.values())
    state = CheckpointStore(folder / "checkpoints").state(f"step-{STEPS:06d}")["data"]
    assert state["rows"] == [12, 6]
    assert state["curriculum"]["drawn"] > STEPS * 6, "the curriculum passed nothing over"


def test_a_killed_run_asks_and_trains_the_same_bit_for_bit(
    whole: tuple[int, Path, list[dict[str, Any]]], data: str, tmp_path: Path
) -> None:
    staleness, folder, metrics = whole
    run(tmp_path / "parts", data, 5, f"rollout.max_staleness={staleness}")
    # As after a kill: a checkpoint of step 4 is the latest, and lines, rollouts and draws of later steps are there already.
    shutil.rmtree(tmp_path / "parts/checkpoints/step-000005")
    (tmp_path / "parts/checkpoints/latest").write_text("step-000004\n")
    assert run(tmp_path / "parts", data, STEPS, f"rollout.max_staleness={staleness}") == metrics
    assert [asked(tmp_path / "parts", step) for step in range(STEPS)] == [asked(folder, step) for step in range(STEPS)]
    states = [CheckpointStore(path / "checkpoints").state(f"step-{STEPS:06d}")["data"] for path in (folder, tmp_path / "parts")]
    assert states[0] == states[1]


def test_two_tensor_ranks_ask_and_train_the_same(whole: tuple[int, Path, list[dict[str, Any]]], data: str, tmp_path: Path) -> None:
    staleness, folder, metrics = whole
    replay = (f"rollout.replay_path={folder / 'rollouts'}", "rollout.engine=replay", f"rollout.max_staleness={staleness}")
    lines = run(tmp_path / "tp2", data, STEPS, *replay, "parallel.tensor=2")  # the engine refuses other prompts than those recorded
    for line, expected in zip(lines, metrics, strict=True):
        assert line["reward/mean"] == expected["reward/mean"]
        for name in ("policy/entropy", "control/alpha", "grad_norm", "loss/total"):
            assert line[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-6), (line["step"], name)
