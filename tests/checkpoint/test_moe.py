"""An MoE model's training checkpoint: bit for bit under the same expert-parallel layout, to rounding under any other."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from megatron_entropic.config import Config
from megatron_entropic.config.loading import load_config
from megatron_entropic.distributed.parallel import initialize_parallel
from megatron_entropic.observability.metrics import read_metrics
from megatron_entropic.trainer import train
from tests.run_ranks import run_ranks
from tests.tiny_models import save_upcycled

pytestmark = [pytest.mark.slow, pytest.mark.distributed]
STEPS, SAVED = 4, 2
SETTINGS = (
    "parallel.tensor=1",
    "batch.prompts_per_step=8",
    "batch.samples_per_prompt=4",
    "batch.max_tokens_per_micro_batch=256",
    *("control.gains=fixed", "control.kp=5", "control.soft_setpoint=false"),  # tuned ones: tests/trainer/test_layouts.py
    "optimizer.lr=3e-5",
    "rollout.max_new_tokens=12",
    "trainer.seed=1",
    "trainer.tensorboard=false",
)
LAYOUTS = {
    "alone": [],
    "pp2": ["parallel.pipeline=2"],
    "tp2": ["parallel.tensor=2", "parallel.sequence=true"],
    "dp2": ["parallel.data=2"],
    "ep2": ["parallel.data=2", "parallel.expert=2"],
    "ep4": ["parallel.data=4", "parallel.expert=4"],
    "ep2-dp4": ["parallel.data=4", "parallel.expert=2"],
    "ep2-tp2": ["parallel.tensor=2", "parallel.sequence=true", "parallel.expert=2"],
    "ep2-pp2": ["parallel.pipeline=2", "parallel.data=2", "parallel.expert=2"],
    "ep4-tp2-dp2": ["parallel.tensor=2", "parallel.sequence=true", "parallel.data=2", "parallel.expert=4"],
}


def run_rank(cfg: Config) -> None:
    train(cfg, initialize_parallel(cfg.parallel, cfg.trainer.seed))


def run_steps(folder: Path, steps: int, *settings: str) -> list[dict[str, Any]]:
    """Trains the run in `folder` up to `steps`, from its checkpoint if there is one; its metrics."""
    cfg = load_config("quickstart", [*SETTINGS, f"run.dir={folder}", f"trainer.steps={steps}", f"checkpoint.every={SAVED}", *settings])
    run_ranks(run_rank, cfg.parallel.world_size, cfg, timeout=300)
    return read_metrics(folder / "metrics.jsonl")


def without_times(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if not name.startswith(("time/", "perf/"))} for line in lines]


@pytest.fixture(scope="module")
def replay(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """Settings that replay an uninterrupted run of one rank, and that run's folder."""
    folder = tmp_path_factory.mktemp("moe")
    model = f"model.hf_path={save_upcycled(folder / 'model', norm_topk_prob=True)}"
    run_steps(folder / "whole", STEPS, model, "rollout.engine=local", "checkpoint.every=0")
    return [model, "rollout.engine=replay", f"rollout.replay_path={folder / 'whole' / 'rollouts'}"], folder / "whole"


@pytest.mark.parametrize(
    ("saved", "resumed"),
    [
        ("alone", "ep2"),
        ("ep2", "alone"),
        ("ep2", "tp2"),
        ("ep2", "pp2"),
        ("ep2", "ep4"),
        ("ep4", "ep2-dp4"),
        ("tp2", "ep2-pp2"),
        ("ep2-tp2", "dp2"),
        ("ep2-pp2", "ep4-tp2-dp2"),
        ("ep4-tp2-dp2", "ep2-tp2"),
    ],
)
def test_a_mixture_resumes_under_another_layout(replay: tuple[list[str], Path], saved: str, resumed: str, tmp_path: Path) -> None:
    settings, whole = replay
    before = run_steps(tmp_path, SAVED, *settings, *LAYOUTS[saved], "trainer.export_hf=false")
    lines = run_steps(tmp_path, STEPS, *settings, *LAYOUTS[resumed])
    assert lines[:SAVED] == before, "these steps were made again"
    expected_lines = read_metrics(whole / "metrics.jsonl")
    assert len(lines) == len(expected_lines) == STEPS
    for line, expected in zip(lines, expected_lines, strict=True):
        for name in ("policy/entropy", "control/alpha", "grad_norm", "loss/total"):
            assert line[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-6), (line["step"], name)
    ours, theirs = (load_file(folder / "hf" / "model.safetensors") for folder in (tmp_path, whole))
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        assert np.linalg.norm(weight - theirs[name]) <= 1e-5 * np.linalg.norm(theirs[name]), name


@pytest.mark.parametrize(
    ("layout", "engine"), [("alone", "replay"), ("ep2", "local"), ("ep2-dp4", "replay"), ("ep4-tp2-dp2", "replay")]
)
def test_a_mixture_resumes_bit_for_bit_under_its_own_layout(
    replay: tuple[list[str], Path], layout: str, engine: str, tmp_path: Path
) -> None:
    settings = [*replay[0], f"rollout.engine={engine}", *LAYOUTS[layout]]
    whole = run_steps(tmp_path / "whole", STEPS, *settings, "checkpoint.every=0")
    before = run_steps(tmp_path / "parts", SAVED, *settings, "trainer.export_hf=false")
    lines = run_steps(tmp_path / "parts", STEPS, *settings)
    assert lines[:SAVED] == before, "these steps were made again"
    assert without_times(lines) == without_times(whole)
    ours, theirs = (load_file(tmp_path / name / "hf" / "model.safetensors") for name in ("parts", "whole"))
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
