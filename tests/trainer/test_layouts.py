"""Invariant 1: same rollouts, same seed, same loss, gradient, entropy, alpha and weights, for every layout and micro-batch split.

One rank records a run with the local engine; every layout replays it through the whole trainer.
"""

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
from tests.tiny_models import save_deepened, save_upcycled

COMPARED = (
    "policy/entropy",
    "policy/clamped_entropy",
    "control/alpha",
    "control/response",
    "control/response_tokens",
    "control/coefficient",
    "loss/policy",
    "loss/total",
    "grad_norm",
    "policy/kl_old",
    "rollout/logprob_gap",
)
CLIP_GRAD = 0.05  # below the gradient's norm, which every rank must know to clip alike
ABSOLUTE_TOLERANCE = {
    "rollout/logprob_gap": 2e-5,  # the largest difference of two log-probs, which are of size 10
    "control/response": 5e-7,  # of size 1e-4
}
SETTINGS = (
    "parallel.tensor=1",
    "batch.prompts_per_step=8",
    "batch.samples_per_prompt=4",
    "batch.max_tokens_per_micro_batch=256",
    "control.kind=entropic+aent",
    "control.coefficient_warmup_steps=0",
    "control.coefficient=1e-3",
    "control.target_entropy=0.8",
    *("control.gains=fixed", "control.kp=5", "control.soft_setpoint=false"),  # tuned ones are compared below
    "optimizer.lr=3e-5",
    f"optimizer.clip_grad={CLIP_GRAD}",
    "rollout.max_new_tokens=12",
    "trainer.steps=3",
    "trainer.seed=1",  # of seed 0, opposite advantages cancel to a gradient that keeps only five digits
    "trainer.tensorboard=false",
)
LAYOUTS = {
    "micro-batches": ["batch.max_tokens_per_micro_batch=48"],
    "tp2": ["parallel.tensor=2"],
    "tp2-sp": ["parallel.tensor=2", "parallel.sequence=true"],
    "pp2": ["parallel.pipeline=2"],
    "dp2": ["parallel.data=2"],
    "tp4-sp": ["parallel.tensor=4", "parallel.sequence=true"],
    "pp4": ["parallel.pipeline=4", "batch.max_tokens_per_micro_batch=48"],
    "dp4": ["parallel.data=4"],
    "tp2-pp2": ["parallel.tensor=2", "parallel.pipeline=2", "batch.max_tokens_per_micro_batch=48"],
    "tp2-sp-pp2": ["parallel.tensor=2", "parallel.sequence=true", "parallel.pipeline=2"],
    "tp2-sp-dp2": ["parallel.tensor=2", "parallel.sequence=true", "parallel.data=2"],
    "pp2-dp2": ["parallel.pipeline=2", "parallel.data=2", "batch.max_tokens_per_micro_batch=48"],
}
MOE_LAYOUTS = {
    "micro-batches": ["batch.max_tokens_per_micro_batch=48"],
    "pp2": ["parallel.pipeline=2"],
    "tp2-sp": ["parallel.tensor=2", "parallel.sequence=true"],
    "tp2-sp-dp2": ["parallel.tensor=2", "parallel.sequence=true", "parallel.data=2"],
    "ep2": ["parallel.data=2", "parallel.expert=2"],
    "ep4": ["parallel.data=4", "parallel.expert=4", "batch.max_tokens_per_micro_batch=48"],
    "ep2-dp4": ["parallel.data=4", "parallel.expert=2"],
    "ep2-tp2-sp": ["parallel.tensor=2", "parallel.sequence=true", "parallel.expert=2"],
    "ep2-tp2-sp-dp2": ["parallel.tensor=2", "parallel.sequence=true", "parallel.data=2", "parallel.expert=2"],
    "ep4-tp2-sp-dp2": ["parallel.tensor=2", "parallel.sequence=true", "parallel.data=2", "parallel.expert=4"],
    "ep2-pp2": ["parallel.pipeline=2", "parallel.data=2", "parallel.expert=2", "batch.max_tokens_per_micro_batch=48"],
    "ep2-tp2-sp-pp2": ["parallel.tensor=2", "parallel.sequence=true", "parallel.pipeline=2", "parallel.expert=2"],
}
VARIANTS = {
    "on-policy": [],
    "off-policy": ["batch.mini_batches=2", "control.actuator=exact", "control.denominator=high_prob_tokens"],
}
Recorded = tuple[list[str], tuple[list[dict[str, Any]], dict[str, np.ndarray]]]


def run_rank(cfg: Config) -> None:
    train(cfg, initialize_parallel(cfg.parallel, cfg.trainer.seed))


def run(settings: list[str]) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    cfg = load_config("quickstart", settings)
    run_ranks(run_rank, cfg.parallel.world_size, cfg)
    return read_metrics(cfg.run_dir / "metrics.jsonl"), load_file(cfg.run_dir / "hf" / "model.safetensors")


@pytest.fixture(scope="module", params=VARIANTS)
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """A variant's settings (with the replay engine on its record), and what one rank made of it."""
    folder = tmp_path_factory.mktemp(request.param)
    return record(folder, save_deepened(folder / "model"), VARIANTS[request.param])


@pytest.fixture(scope="module", params=[True, False], ids=["normalized", "unnormalized"])
def recorded_moe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """The same of an MoE model, the weights of a token's experts scaled to sum to 1 or not."""
    folder = tmp_path_factory.mktemp("moe")
    model = save_upcycled(folder / "model", norm_topk_prob=request.param)
    return record(folder, model, VARIANTS["on-policy" if request.param else "off-policy"])


def record(folder: Path, model: Path, variant: list[str]) -> Recorded:
    settings = [*SETTINGS, *variant, f"model.hf_path={model}"]
    outcome = run([*settings, "rollout.engine=local", f"run.dir={folder / 'recorded'}"])
    assert all(0 < line["reward/mean"] < 1 and line["grad_norm"] > CLIP_GRAD for line in outcome[0]), "much would not be compared"
    assert all(abs(line["control/response"]) > 2e-5 and line["control/response_tokens"] > 0 for line in outcome[0])
    return [*settings, "rollout.engine=replay", f"rollout.replay_path={folder / 'recorded' / 'rollouts'}"], outcome


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_trains_the_same(recorded: Recorded, layout: str, tmp_path: Path) -> None:
    compare(recorded, LAYOUTS[layout], tmp_path)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("layout", MOE_LAYOUTS)
def test_every_layout_trains_moe_the_same(recorded_moe: Recorded, layout: str, tmp_path: Path) -> None:
    compare(recorded_moe, MOE_LAYOUTS[layout], tmp_path)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("layout", ["tp2-sp-dp2", "tp2-pp2"])
def test_tuned_gains_steer_the_same(tmp_path: Path, layout: str) -> None:
    """To 1e-4 of alpha's limit: alpha answers to an entropy with one over the plant's gain, many times the entropy's rounding."""
    tuned = ["control.gains=auto", "control.soft_setpoint=true", f"model.hf_path={save_deepened(tmp_path / 'model')}"]
    expected, _ = run([*SETTINGS, *tuned, "rollout.engine=local", f"run.dir={tmp_path / 'one'}"])
    replay = ["rollout.engine=replay", f"rollout.replay_path={tmp_path / 'one' / 'rollouts'}", f"run.dir={tmp_path / 'many'}"]
    metrics, _ = run([*SETTINGS, *tuned, *LAYOUTS[layout], *replay])
    assert len({line["control/alpha"] for line in expected}) == len(metrics) == 3, "nothing was steered"
    for line, alone in zip(metrics, expected, strict=True):
        assert line["policy/entropy"] == pytest.approx(alone["policy/entropy"], rel=1e-5)
        assert line["control/alpha"] == pytest.approx(alone["control/alpha"], abs=1e-4)


def compare(recorded: Recorded, layout: list[str], tmp_path: Path) -> None:
    settings, (expected_metrics, expected_weights) = recorded
    metrics, weights = run([*settings, *layout, f"run.dir={tmp_path / 'run'}"])
    assert len(metrics) == len(expected_metrics) == 3
    for line, expected in zip(metrics, expected_metrics, strict=True):
        for field in COMPARED:
            absolute = ABSOLUTE_TOLERANCE.get(field, 2e-6)
            assert line[field] == pytest.approx(expected[field], rel=1e-5, abs=absolute), (line["step"], field)
    assert weights.keys() == expected_weights.keys()
    for name, weight in weights.items():
        distance = np.linalg.norm(weight - expected_weights[name]) / np.linalg.norm(expected_weights[name])
        assert distance <= 1e-5, name


@pytest.mark.slow
@pytest.mark.distributed
def test_a_replay_is_bit_for_bit_the_run_it_records(recorded: Recorded, tmp_path: Path) -> None:
    settings, (expected_metrics, expected_weights) = recorded
    metrics, weights = run([*settings, f"run.dir={tmp_path / 'run'}"])
    for line, expected in zip(metrics, expected_metrics, strict=True):
        assert {field: line[field] for field in COMPARED} == {field: expected[field] for field in COMPARED}
    assert all(np.array_equal(weights[name], expected_weights[name]) for name in expected_weights)
    assert any(line["control/alpha"] for line in metrics)
