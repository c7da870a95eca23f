"""The process groups of a run: who this rank is on every axis of the layout."""

import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from torch.distributed import ProcessGroup

from megatron_entropic import platform
from megatron_entropic.config import ParallelConfig
from megatron_entropic.distributed.host_line import close_host_line, host_line
from megatron_entropic.system.rendezvous import open_store


@dataclass(frozen=True)
class Parallel:
    """This rank's coordinates in the layout. The data axis counts context-parallel ranks too: both hold different tokens.

    The expert axis runs across others: the tensor x data ranks of a pipeline stage, counted with the tensor rank fastest, are
    cut into groups of `ep_size` neighbours. A group holds every expert once; the groups are replicas of each other.
    """

    rank: int
    world_size: int
    tp_group: ProcessGroup
    tp_rank: int
    tp_size: int
    pp_group: ProcessGroup
    pp_rank: int
    pp_size: int
    dp_group: ProcessGroup
    dp_rank: int
    dp_size: int
    ep_group: ProcessGroup
    ep_rank: int
    ep_size: int
    expert_replica: int
    """Index of this rank's group among the stage's expert-parallel groups; the first holds the (tp 0, dp 0) rank."""
    is_first_stage: bool
    is_last_stage: bool
    last_stage_rank: int
    """Global rank of the last stage's member with tensor and data rank 0; equal on all ranks."""
    device: torch.device


def initialize_parallel(cfg: ParallelConfig, seed: int, folder: Path | None = None) -> Parallel:
    """Joins the process group and builds Megatron-Core's parallel groups; collective over all ranks of the run.

    Rank, world size and rendezvous come from RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, as torchrun sets
    them; a single process needs none of them, and ranks that share `folder` no MASTER_PORT. Raises ValueError when the world
    size is not the layout's, RendezvousError when the rendezvous fails, PlacementError when there is no GPU for this rank where the
    machine has some.
    """
    platform.check_gpus_are_seen()
    platform.install()
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size != cfg.world_size:
        raise ValueError(
            f"WORLD_SIZE={world_size}, but the layout needs {cfg.world_size} ranks: parallel.tensor={cfg.tensor} x "
            f"parallel.pipeline={cfg.pipeline} x parallel.context={cfg.context} x parallel.data={cfg.data}; "
            f"launch {cfg.world_size} processes or change the layout"
        )
    rank = int(os.environ.get("RANK", "0"))
    device = platform.select_device(int(os.environ.get("LOCAL_RANK", "0")))
    if not dist.is_initialized():
        dist.init_process_group(
            platform.communication_backend(),
            store=open_store(rank, world_size, cfg.timeout_s, folder),
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=cfg.timeout_s),
        )
    host_line()  # opened while all ranks are here
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=cfg.tensor,
        pipeline_model_parallel_size=cfg.pipeline,
        context_parallel_size=cfg.context,
        expert_model_parallel_size=cfg.expert,
        expert_tensor_parallel_size=1,
        distributed_timeout_minutes=cfg.timeout_s / 60,
    )
    model_parallel_cuda_manual_seed(seed)
    return _layout_of(device)


def shutdown() -> None:
    """Destroys the groups made by `initialize_parallel`; safe to call twice."""
    close_host_line()
    if dist.is_initialized():
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


def _layout_of(device: torch.device) -> Parallel:
    rank, world_size = dist.get_rank(), dist.get_world_size()
    tp_group = parallel_state.get_tensor_model_parallel_group()
    pp_group = parallel_state.get_pipeline_model_parallel_group()
    dp_group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    ep_group = parallel_state.get_expert_model_parallel_group()
    # Global rank 0 is the (tp 0, dp 0) member of the first stage, so its pipeline group ends at the rank we want.
    last_stage_rank = (pp_group.size() - 1) * (world_size // pp_group.size())
    return Parallel(
        rank=rank,
        world_size=world_size,
        tp_group=tp_group,
        tp_rank=tp_group.rank(),
        tp_size=tp_group.size(),
        pp_group=pp_group,
        pp_rank=pp_group.rank(),
        pp_size=pp_group.size(),
        dp_group=dp_group,
        dp_rank=dp_group.rank(),
        dp_size=dp_group.size(),
        ep_group=ep_group,
        ep_rank=ep_group.rank(),
        ep_size=ep_group.size(),
        expert_replica=parallel_state.get_expert_data_parallel_rank(),
        is_first_stage=pp_group.rank() == 0,
        is_last_stage=pp_group.rank() == pp_group.size() - 1,
        last_stage_rank=last_stage_rank,
        device=device,
    )
