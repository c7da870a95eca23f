"""Every rank of every layout steers with the same bits, from two small collectives an update."""

import random
import struct
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from megatron_entropic.config import Config
from megatron_entropic.config.loading import load_config
from megatron_entropic.control import make_controller
from megatron_entropic.distributed import reductions
from megatron_entropic.distributed.parallel import initialize_parallel
from megatron_entropic.policy.batching import Batch, Sample
from megatron_entropic.policy.engine import Policy
from megatron_entropic.trainer import update_policy
from tests.run_ranks import run_ranks
from tests.tiny_models import save_divisible

pytestmark = [pytest.mark.slow, pytest.mark.distributed]
STEPS = 4


def make_batch(step: int) -> Batch:
    rng = random.Random(step)
    samples = []
    for _ in range(8):
        response = [rng.randrange(2, 99) for _ in range(rng.randint(1, 9))]
        samples.append(Sample([rng.randrange(2, 99)] * 3, response, [-4.0] * len(response), rng.gauss(0, 1)))
    return Batch(samples)


def steer(cfg: Config) -> tuple[list[tuple[bytes, ...]], list[int]]:
    """(bits of alpha, bonus, entropy and response in every update; bytes of every control collective)."""
    sizes: list[int] = []
    all_reduce, reduce_control = dist.all_reduce, reductions.reduce_control

    def counting(tensor: torch.Tensor, *args: object, **kwargs: object) -> object:
        sizes.append(tensor.numel() * tensor.element_size())
        return all_reduce(tensor, *args, **kwargs)

    def counted(*args: object) -> object:
        dist.all_reduce = counting
        try:
            return reduce_control(*args)  # type: ignore[arg-type]
        finally:
            dist.all_reduce = all_reduce

    from megatron_entropic.policy import engine, response

    engine.reduce_control = response.reduce_control = counted  # type: ignore[assignment]
    policy = Policy(cfg, initialize_parallel(cfg.parallel, 0))
    controller = make_controller(cfg)
    steered = [
        (update.coefficients.alpha, update.coefficients.bonus, update.entropy, update.measurement.response)
        for step in range(STEPS)
        for update in update_policy(cfg, policy, controller, make_batch(step))
    ]
    return [tuple(struct.pack("<d", value) for value in values) for values in steered], sizes


@pytest.mark.parametrize("mini_batches", [1, 2])
@pytest.mark.parametrize("layout", [("parallel.tensor=2", "parallel.pipeline=2"), ("parallel.tensor=2", "parallel.data=2")])
def test_all_ranks_steer_with_the_same_bits(tmp_path: Path, layout: tuple[str, ...], mini_batches: int) -> None:
    control = ("control.gains=fixed", "control.kp=3", "control.ki=0.5", "control.target_entropy=4", "control.soft_setpoint=false")
    cfg = load_config(
        "quickstart",
        [
            "parallel.tensor=1",
            f"model.hf_path={save_divisible(tmp_path / 'model')}",
            "batch.max_tokens_per_micro_batch=64",
            "batch.prompts_per_step=8",
            f"batch.mini_batches={mini_batches}",
            "optimizer.lr=1e-3",
            *control,
            *layout,
        ],
    )
    ranks = run_ranks(steer, 4, cfg)
    bits, sizes = ranks[0]
    assert len(bits) == STEPS * mini_batches
    assert len(set(bits)) == len(bits), "nothing was steered"
    for other, other_sizes in ranks[1:]:
        assert other == bits
        assert other_sizes == sizes
    assert len({response for *_, response in bits}) == len(bits)
    prepared, updated = [64] * (mini_batches > 1), [64, 32] * mini_batches
    assert sizes == (prepared + updated) * STEPS
