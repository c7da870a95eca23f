"""Gradients that are reduced beside the backward pass are those that are reduced after it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from megatron_entropic import platform
from megatron_entropic.config import Config, ParallelConfig
from megatron_entropic.config.loading import load_config
from megatron_entropic.control import Coefficients
from megatron_entropic.distributed.parallel import initialize_parallel
from megatron_entropic.policy import engine
from megatron_entropic.policy.batching import Batch, Sample
from megatron_entropic.policy.gradients import overlaps_gradients, shared_gradients
from tests.run_ranks import run_ranks
from tests.tiny_models import save_divisible, save_upcycled

BUCKET = 3000
"""Elements: several buckets, also of the tiny models."""
SETTINGS = (
    "parallel.tensor=1",
    "batch.max_tokens_per_micro_batch=32",
    "rollout.max_new_tokens=12",
    "optimizer.clip_grad=0",  # the norm is summed bucket by bucket, so it may round otherwise
)
LAYOUTS = {
    "dp2": ["parallel.data=2"],
    "dp2-tp2": ["parallel.data=2", "parallel.tensor=2", "parallel.sequence=true"],
    "dp2-pp2": ["parallel.data=2", "parallel.pipeline=2"],
}


def a_batch(samples: int) -> Batch:
    random = np.random.default_rng(3)
    made = []
    for index in range(samples):
        prompt, response = random.integers(2, 60, 5).tolist(), random.integers(2, 60, int(random.integers(2, 9))).tolist()
        made.append(Sample(prompt, response, [-1.0] * len(response), 1.0 if index % 2 else -1.0))
    return Batch(made)


def updated(cfg: Config, samples: int) -> tuple[list[float], dict[str, npt.NDArray[np.float32]], int]:
    """Gradient norms of two updates, the weights after them, and the number of buckets."""
    parallel = initialize_parallel(cfg.parallel, 0)
    engine.shared_gradients = lambda model, layout: shared_gradients(model, layout, BUCKET)  # type: ignore[attr-defined]
    policy = engine.Policy(cfg, parallel)
    norms = [policy.update(a_batch(samples), Coefficients(alpha=0.1)).grad_norm for _ in range(2)]
    buckets = len(policy.ddp.bucket_groups) + len(policy.ddp.expert_parallel_bucket_groups)
    return norms, {name: tensor.float().numpy() for name, tensor in policy.weights()}, buckets


def settings(model: Path, overlap: bool, *changes: str) -> Config:
    return load_config(
        "quickstart", [*SETTINGS, f"model.hf_path={model}", f"parallel.gradient_overlap={str(overlap).lower()}", *changes]
    )


def moe(folder: Path) -> Path:
    return save_upcycled(folder, norm_topk_prob=True)


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("make_model", [save_divisible, moe], ids=["dense", "moe"])
@pytest.mark.parametrize("samples", [8, 1], ids=["several micro-batches", "a rank without samples"])
def test_overlap_changes_no_weight(tmp_path: Path, layout: str, make_model: Callable[[Path], Path], samples: int) -> None:
    model = make_model(tmp_path / "model")
    runs = []
    for overlap in (False, True):
        cfg = settings(model, overlap, *LAYOUTS[layout])
        runs.append(run_ranks(updated, cfg.parallel.world_size, cfg, samples)[0])
    (norms, weights, _), (overlapped_norms, overlapped_weights, buckets) = runs
    assert buckets > 2
    assert norms == pytest.approx(overlapped_norms, rel=1e-6)
    assert all(norm > 0 for norm in norms)
    of_two_ranks = make_model is not moe or layout != "dp2-tp2"  # there four hold an expert, whose order depends on the bucket
    for name, weight in weights.items():
        difference = np.linalg.norm(weight - overlapped_weights[name])
        assert difference <= (0.0 if of_two_ranks else 1e-5 * np.linalg.norm(weight)), name


@pytest.mark.parametrize(("gpu", "data", "expected"), [(False, 4, False), (True, 4, True), (True, 1, False)])
def test_gradients_overlap_on_gpus_by_default(monkeypatch: pytest.MonkeyPatch, gpu: bool, data: int, expected: bool) -> None:
    monkeypatch.setattr(platform, "accelerated", lambda: gpu)
    assert overlaps_gradients(ParallelConfig(data=data)) is expected
    assert overlaps_gradients(ParallelConfig(data=data, gradient_overlap=True))
    assert not overlaps_gradients(ParallelConfig(data=data, gradient_overlap=False))
