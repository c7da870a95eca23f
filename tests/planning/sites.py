"""Clusters and recipes to plan for."""

from collections.abc import Sequence

from megatron_entropic.checkpoint_files.kind import model_folder
from megatron_entropic.commands.plan import architecture_of
from megatron_entropic.config import Config
from megatron_entropic.config.loading import load_config
from megatron_entropic.planning.cluster import Assumptions, cluster_of
from megatron_entropic.planning.layouts import Site

LLAMA_70B = (
    "model.hf_path=models/Llama-3.3-70B-Instruct",
    "model.dtype=bfloat16",
    "parallel.tensor=8",
    "parallel.sequence=true",
    "parallel.pipeline=4",
    "batch.max_tokens_per_micro_batch=9216",
    "rollout.max_new_tokens=8192",
    "rollout.servers=4",
    "rollout.tensor=8",
)


def llama_70b(*changes: str) -> Config:
    return load_config("quickstart", [*LLAMA_70B, *changes])


def site_of(cfg: Config, gpus: int = 64, *, gpu: str = "h100", assume: Sequence[str] = ()) -> Site:
    cluster = cluster_of(gpu=gpu, memory_gb=None, gpus=gpus, nodes=None, gpus_per_node=8, needed=gpus)
    return Site(architecture_of(model_folder(cfg.model.hf_path).hf_dir), cluster, Assumptions.of(assume))
