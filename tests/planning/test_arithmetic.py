"""Parameters, bytes sent and floating-point operations against numbers worked out by hand."""

from pathlib import Path

import pytest

from megatron_entropic.planning.communication import layer_traffic_per_token, step_traffic, sync_traffic, update_traffic
from megatron_entropic.planning.model_memory import ModelSize, model_memory, stage_parameters
from megatron_entropic.planning.serving import server_memory
from megatron_entropic.planning.workload import Workload, forward_passes, head_flops, layer_flops
from tests.planning.sites import llama_70b, site_of

SIZE = 70_553_706_496  # parameters of Llama 3 70B, as its checkpoint's index counts them


def test_parameters_of_a_stage() -> None:
    cfg = llama_70b("parallel.data=2")
    arch = site_of(cfg).arch
    size = ModelSize.of(arch)
    assert size.total == SIZE
    attention, mlp, norms = 2 * 8192 * (8192 + 1024), 3 * 8192 * 28_672, 2 * 8192
    layers = 20 * ((attention + mlp) // 8 + norms)
    vocabulary = 129_024 // 8 * 8192  # 128,256 padded to a multiple of 8 x 128
    stages = [stage_parameters(arch, size, cfg.model, cfg.parallel, stage).total for stage in range(4)]
    assert stages == [layers + vocabulary, layers, layers, layers + vocabulary + 8192]
    memory = model_memory(stage_parameters(arch, size, cfg.model, cfg.parallel, 1), cfg.model, cfg.parallel)
    assert (memory.parameters, memory.gradients, memory.optimizer) == (2 * layers, 4 * layers, 6 * layers)


def test_tensor_parallel_traffic_of_a_layer() -> None:
    arch, one_all_reduce = site_of(llama_70b()).arch, 2 * 7 / 8 * 2 * 8192

    def sent(*changes: str, backward: bool = True) -> float:
        cfg = llama_70b(*changes)
        return layer_traffic_per_token(arch, cfg.model, cfg.parallel, backward=backward)

    assert sent("parallel.sequence=false") == 4 * one_all_reduce
    assert sent() == 5 * one_all_reduce  # inputs are gathered again for weight gradients
    assert sent(backward=False) == 2 * one_all_reduce
    assert [sent(f"model.recompute={kind}") for kind in ("selective", "full")] == [6 * one_all_reduce, 7 * one_all_reduce]
    assert sent("parallel.tensor=1", "parallel.sequence=false") == 0


def test_traffic_of_an_update_and_of_a_sync() -> None:
    cfg = llama_70b("parallel.data=4", "batch.mini_batches=2")
    site = site_of(cfg, 160)
    size = ModelSize.of(site.arch)
    stages = [stage_parameters(site.arch, size, cfg.model, cfg.parallel, stage) for stage in range(4)]
    reduced, gathered = update_traffic(cfg.model, cfg.parallel, site.cluster, stages[1])
    assert (reduced.bytes, gathered.bytes) == (3 / 4 * 4 * stages[1].total, 3 / 4 * 2 * stages[1].total)
    assert reduced.gb_s == site.cluster.gpu.network_gb_s
    work = Workload.of(cfg, site.assumed)
    by_kind = {traffic.kind: traffic for traffic in step_traffic(site.arch, cfg.model, cfg.parallel, site.cluster, work, stages)}
    assert by_kind["data: gradient reduce-scatter"].bytes == 2 * 3 / 4 * 4 * stages[3].total
    assert by_kind["control: the 64-byte all-reduce"].bytes == pytest.approx(3 * 2 * 64 * 127 / 128)  # two updates, one log-prob pass
    assert by_kind["tensor: all-gather, reduce-scatter"].gb_s == site.cluster.gpu.nvlink_gb_s
    synced = sync_traffic(size, cfg.model, cfg.parallel, cfg.rollout, site.cluster)
    assert [traffic.bytes for traffic in synced] == [2 * SIZE * 7 / 8, 2 * SIZE * 3 / 4, 2 * SIZE, 2 * 2 * SIZE]
    assert synced[-1].gb_s == site.cluster.gpu.hbm_gb_s


def test_arithmetic_of_a_token() -> None:
    arch = site_of(llama_70b()).arch
    size = ModelSize.of(arch)
    matrices = 2 * 8192 * (8192 + 1024) + 3 * 8192 * 28_672 + 2 * 8192
    assert layer_flops(arch, size, 1000) == 2 * matrices + 2 * 8192 * 1000  # q k and p v: 4 x 8192 x half the length
    assert head_flops(arch) == 2 * 128_256 * 8192


def test_log_prob_passes_of_a_step() -> None:
    passes = {
        (): 0,
        ("batch.mini_batches=2",): 1,
        ("rollout.max_staleness=1",): 1,
        ("control.fresh_measurement=true",): 1,
        ("control.denominator=high_prob_tokens",): 1,
        ("control.kind=clip_cov",): 1,
        ("control.kind=kl_cov", "batch.mini_batches=4"): 1.75,
    }
    for changes, expected in passes.items():
        cfg = llama_70b(*changes)
        assert forward_passes(cfg.batch, cfg.control, cfg.rollout) == expected


def test_cache_of_a_server() -> None:
    cfg = llama_70b()
    site = site_of(cfg)
    server = server_memory(site.arch, cfg, site.cluster, site.assumed, Workload.of(cfg, site.assumed))
    assert server.weights == 2 * SIZE / 8
    assert server.cache_per_token == 2 * 80 * 1 * 128 * 2  # one of 8 key heads on each GPU
    assert server.cached_tokens == int((0.85 * 79.6 - 4) * 2**30 - server.weights) // server.cache_per_token
    alone = llama_70b("rollout.tensor=1")
    problem = server_memory(site.arch, alone, site.cluster, site.assumed, Workload.of(alone, site.assumed)).problem
    assert problem is not None
    assert "raise rollout.tensor" in problem


def test_a_missing_model_is_planned_from_its_published_config(tmp_path: Path) -> None:
    cfg = llama_70b(f"model.hf_path={tmp_path / 'Llama-3.3-70B-Instruct'}")
    assert site_of(cfg).arch.num_layers == 80
