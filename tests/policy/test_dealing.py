"""Each rank gets the samples that it trains on, bit for bit, and of the others their lengths and advantages."""

from typing import Any

import numpy as np
import pytest
import torch

from megatron_entropic.config import AlgorithmConfig, BatchConfig, Config, ControlConfig, ParallelConfig
from megatron_entropic.distributed.parallel import initialize_parallel
from megatron_entropic.policy.batching import Batch, Sample, SampleElsewhere, build_micro_batch, held, plan_micro_batches
from megatron_entropic.policy.dealing import deal, samples_needed
from tests.run_ranks import run_ranks

MAX_TOKENS = 64


def samples(count: int = 24) -> list[Sample]:
    rng = np.random.default_rng(3)
    made = []
    for _ in range(count):
        prompt, response = rng.integers(1, 9), rng.integers(1, 40)
        log_probs = -rng.exponential(size=response).astype(np.float32)
        ids = rng.integers(0, 2**31 - 1, prompt + response).astype(np.int32)
        made.append(Sample(ids[:prompt], ids[prompt:], log_probs, float(np.float32(rng.normal()))))
    return made


def config(mini_batches: int = 1, kind: str = "entropic", **layout: int) -> Config:
    return Config(
        parallel=ParallelConfig(**layout),  # type: ignore[arg-type]
        batch=BatchConfig(prompts_per_step=6, samples_per_prompt=4, mini_batches=mini_batches, max_tokens_per_micro_batch=MAX_TOKENS),
        algorithm=AlgorithmConfig(),
        control=ControlConfig(kind=kind),  # type: ignore[arg-type]
    )


def packed(batch: Batch, data_parallel: int, dp_rank: int) -> list[list[Any]]:
    """Every tensor of every micro-batch of a data-parallel rank."""
    plan = plan_micro_batches([sample.length for sample in batch.samples], data_parallel=data_parallel, max_tokens=MAX_TOKENS)
    micro_batches = [build_micro_batch(batch, indices, device=torch.device("cpu")) for indices in plan[dp_rank]]
    return [[value.tolist() for value in vars(micro).values() if isinstance(value, torch.Tensor)] for micro in micro_batches]


def dealt(cfg: Config) -> tuple[int, list[list[Any]], int]:
    """(data-parallel rank, its packed step and mini-batches, samples held) of this rank."""
    parallel = initialize_parallel(cfg.parallel, 0)
    batch = deal(cfg.control, cfg.batch, parallel, samples() if parallel.rank == 0 else [])
    parts = [batch, *batch.mini_batches(cfg.batch.mini_batches)]
    packings = [packed(part, parallel.dp_size, parallel.dp_rank) for part in parts]
    return parallel.dp_rank, packings, sum(isinstance(sample, Sample) for sample in batch.samples)


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("layout", "mini_batches"),
    [
        ({"data": 2}, 1),
        ({"data": 3}, 2),
        ({"tensor": 2}, 1),
        ({"pipeline": 2}, 1),
        ({"data": 2, "tensor": 2}, 3),
        ({"data": 2, "pipeline": 2}, 2),
    ],
)
def test_ranks_pack_what_they_would_have_packed_from_the_whole_batch(layout: dict[str, int], mini_batches: int) -> None:
    cfg = config(mini_batches, **layout)
    whole = Batch(samples())
    for dp_rank, packings, _ in run_ranks(dealt, cfg.parallel.world_size, cfg):
        parts = [whole, *whole.mini_batches(mini_batches)]
        assert packings == [packed(part, cfg.parallel.data, dp_rank) for part in parts]


@pytest.mark.distributed
def test_a_rank_holds_its_share_only() -> None:
    shares = run_ranks(dealt, 3, config(data=3))
    assert shares[0][2] == 24  # rank 0 made them
    assert all(share[2] <= 12 for share in shares[1:])


def test_clip_cov_compares_all_tokens_so_all_ranks_hold_them() -> None:
    cfg = config(kind="clip_cov", data=2)
    assert samples_needed(cfg.control, cfg.batch, samples(), 2) == [list(range(24))] * 2


def test_a_sample_that_is_elsewhere_cannot_be_packed() -> None:
    batch = Batch([samples()[0], SampleElsewhere(3, 4, 1.0)])
    assert batch.response_tokens == samples()[0].response_length + 4
    with pytest.raises(AssertionError, match="dealt to other ranks"):
        build_micro_batch(batch, [1], device=torch.device("cpu"))
    with pytest.raises(ValueError, match="sample 0 has an empty prompt or response"):
        Batch([SampleElsewhere(0, 4, 1.0)])
    assert held(samples()[1]).response_length == samples()[1].response_length
