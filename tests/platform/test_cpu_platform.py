"""The CPU platform: what it patches, that it can be listed, and that Megatron-Core's own features rest on it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from megatron.core import tensor_parallel
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

from megatron_entropic import platform
from megatron_entropic.config import ParallelConfig
from megatron_entropic.distributed.parallel import initialize_parallel, shutdown
from tests.run_ranks import RankFailedError, run_ranks

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="nothing is patched where there is a GPU")


def patched_twice() -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    before = platform.applied_patches()
    platform.install()
    once = platform.applied_patches()
    current_device = torch.cuda.current_device
    platform.install()
    assert torch.cuda.current_device is current_device
    return before, once, platform.applied_patches()


def test_install_is_idempotent_and_lists_its_patches_with_reasons() -> None:
    ((before, once, twice),) = run_ranks(patched_twice, 1)
    assert before == ()
    assert once == twice
    assert len(set(once)) == len(once) > 10
    assert all(": " in line for line in once)
    assert any(line.startswith("torch.cuda.current_device: ") for line in once)
    assert any(line.startswith("DistributedOptimizer.") for line in once)


def cuda_literals() -> None:
    platform.install()
    for tensor in (
        torch.zeros(2, device="cuda"),
        torch.tensor([1.0], device=torch.device("cuda", 0), pin_memory=True),
        torch.ones(2).cuda(),
        torch.ones(2).to("cuda:0"),
        torch.ones(2).to(device=torch.cuda.current_device()),
        torch.ones(2).pin_memory(),
    ):
        assert tensor.device.type == "cpu"
    # Only Megatron-Core's optimizer is told that a CPU tensor is a CUDA one.
    assert torch.ones(2).type() == "torch.FloatTensor"
    optimizer = {"__name__": "megatron.core.optimizer.clip_grads", "tensor": torch.ones(2)}
    assert eval("tensor.type()", optimizer) == "torch.cuda.FloatTensor"
    assert isinstance(torch.cuda.Stream, type), "other packages write torch.cuda.Stream in annotations"
    with torch.cuda.stream(torch.cuda.current_stream()):
        torch.cuda.Event(enable_timing=True).record()
    assert torch.compile(lambda x: x + 1)(torch.zeros(1)) == 1


def test_cuda_literals_become_cpu_ones() -> None:
    run_ranks(cuda_literals, 1)


def drawn() -> list[list[float]]:
    """Two draws inside Megatron-Core's tracked generator of this rank, with a draw outside in between, twice seeded."""
    draws = []
    initialize_parallel(ParallelConfig(tensor=2), seed=5)
    for seed in (1, 1, 2):
        model_parallel_cuda_manual_seed(seed)
        with tensor_parallel.get_cuda_rng_tracker().fork():
            first = torch.rand(2)
        torch.rand(5)
        with tensor_parallel.get_cuda_rng_tracker().fork():
            draws.append([*first.tolist(), *torch.rand(2).tolist()])
    shutdown()
    return draws


def test_tracked_random_generators_work() -> None:
    zero, one = run_ranks(drawn, 2)
    assert zero[0] == zero[1] != zero[2]
    assert zero[0] != one[0], "tensor ranks must draw different numbers"
    assert zero[0][:2] != zero[0][2:]


def wrong_world() -> None:
    initialize_parallel(ParallelConfig(tensor=4), seed=0)


def test_a_world_of_the_wrong_size_is_refused() -> None:
    with pytest.raises(RankFailedError, match=r"WORLD_SIZE=2, but the layout needs 4 ranks: parallel\.tensor=4"):
        run_ranks(wrong_world, 2)


def places() -> tuple[int, ...]:
    parallel = initialize_parallel(ParallelConfig(tensor=2, pipeline=2, data=2), seed=0)
    place = (parallel.rank, parallel.tp_rank, parallel.dp_rank, parallel.pp_rank, parallel.last_stage_rank)
    assert (parallel.is_first_stage, parallel.is_last_stage) == (parallel.pp_rank == 0, parallel.pp_rank == 1)
    assert (parallel.tp_size, parallel.dp_size, parallel.pp_size, parallel.world_size) == (2, 2, 2, 8)
    shutdown()
    shutdown()
    return place


@pytest.mark.distributed
def test_ranks_know_their_place() -> None:
    assert run_ranks(places, 8) == [(rank, rank % 2, rank // 2 % 2, rank // 4, 4) for rank in range(8)]


def expert_places() -> tuple[int, ...]:
    parallel = initialize_parallel(ParallelConfig(tensor=2, sequence=True, pipeline=2, data=2, expert=2), seed=0)
    place = (parallel.ep_rank, parallel.expert_replica, parallel.ep_size)
    assert dist.get_process_group_ranks(parallel.ep_group) == [parallel.rank // 2 * 2, parallel.rank // 2 * 2 + 1]
    shutdown()
    return place


@pytest.mark.distributed
def test_expert_parallel_ranks_are_neighbours_of_one_stage() -> None:
    assert run_ranks(expert_places, 8) == [(rank % 2, rank // 2 % 2, 2) for rank in range(8)]


@pytest.mark.slow
def test_a_single_process_needs_no_launcher_and_hears_no_warnings(tmp_path: Path) -> None:
    program = tmp_path / "alone.py"
    program.write_text(
        "from megatron_entropic import platform\n"
        "from megatron_entropic.config import ParallelConfig\n"
        "from megatron_entropic.distributed.parallel import initialize_parallel, shutdown\n"
        "import megatron.core.models.gpt\n"
        "print(initialize_parallel(ParallelConfig(), seed=0).world_size)\n"
        "shutdown()\n"
    )
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[2], env={})
    assert done.stdout == "1\n", done.stderr
    assert "not installed" not in done.stderr


def norm_of_a_large_gradient() -> float:
    from megatron.core.optimizer import clip_grads

    parallel = initialize_parallel(ParallelConfig(), 0)
    gradients = [
        torch.randn(24_000_000, generator=torch.Generator().manual_seed(seed)) * scale for seed, scale in ((0, 1e-3), (1, 1e-2))
    ]
    exact = sum(float(gradient.double().square().sum()) for gradient in gradients) ** 0.5
    norm = float(clip_grads.get_grad_norm_fp32(gradients, grad_stats_parallel_group=parallel.tp_group))
    shutdown()
    return norm / exact - 1


@pytest.mark.distributed
def test_the_norm_of_a_large_gradient_is_exact() -> None:
    """An embedding of 49,152 tokens has 28 million entries: their squares, added up in float32, are too coarse to clip by."""
    (error,) = run_ranks(norm_of_a_large_gradient, 1)
    assert abs(error) <= 1e-7
