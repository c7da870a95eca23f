"""The command line and environment of a vLLM server: what a setting of a run becomes in vLLM's terms."""

import json
import math
import os
from pathlib import Path

import torch

from megatron_entropic.config import RolloutConfig
from megatron_entropic.platform import accelerated
from megatron_entropic.rollout.vllm.server_main import FORK_ENGINE
from megatron_entropic.rollout.weight_sync.transports import weight_backend
from megatron_entropic.system.cuda_variables import of_the_rank
from megatron_entropic.system.devices import VISIBLE, server_devices, training_ranks_here, visible_devices

MODEL_NAME = "policy"
_PLUGIN = "megatron_entropic.rollout.vllm.worker_plugin"
_PACKAGE_ROOT = Path(__file__).resolve().parents[3]
# What a launcher of ranks sets, and a server must not take for its own.
_RANK_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS", "TRITON_INTERPRET", "VLLM_CPU_KVCACHE_SPACE")
_RANK_PREFIXES = ("LOCAL_", "GROUP_", "ROLE_", "TORCHELASTIC_", "TORCH_NCCL_")


def server_arguments(
    cfg: RolloutConfig, *, port: int, model_dir: Path, dtype: str, max_model_len: int, seed: int, stats: bool = False
) -> list[str]:
    """vLLM's command line. cfg.server_args come last, so they win over everything set here.

    `stats`: whether vLLM counts what it does, for its /metrics.
    """
    options = {
        "--model": str(model_dir),
        "--served-model-name": MODEL_NAME,
        "--host": cfg.host,
        "--port": str(port),
        "--dtype": dtype,
        "--max-model-len": str(max_model_len),
        "--max-num-seqs": str(cfg.max_sequences),
        "--tensor-parallel-size": str(cfg.tensor),
        "--seed": str(seed),
        "--logprobs-mode": "processed_logprobs",  # of the distribution that was sampled from, temperature included
        "--generation-config": "vllm",  # no top-k, top-p or penalty from the checkpoint's generation_config.json
        "--worker-extension-cls": f"{_PLUGIN}.WorkerExtension",
        "--middleware": f"{_PLUGIN}.RequireKey",
        "--weight-transfer-config": json.dumps({"backend": f"entropic_{weight_backend(cfg)}"}),
    }
    flags = ["--enable-scale-out", "--disable-uvicorn-access-log", *([] if stats else ["--disable-log-stats"])]
    if not any(model_dir.glob("*.safetensors")):  # of a distributed checkpoint: the trainer sends the weights before the first prompt
        options["--load-format"] = "dummy"
    return [word for option in options.items() for word in option] + flags + _device_arguments(cfg) + list(cfg.server_args)


def _device_arguments(cfg: RolloutConfig) -> list[str]:
    if accelerated():
        return ["--gpu-memory-utilization", str(cfg.gpu_memory_fraction)]
    # With eager execution and an explicit cache size vLLM needs no warm-up on a CPU. A prompt that is prefilled in two pieces
    # makes it rewind the request's random generator, which CPU generators cannot: the engine dies. So prompts stay whole.
    return ["--enforce-eager", "--no-enable-chunked-prefill", "--kv-cache-memory-bytes", str(int(cfg.memory_gb * 2**30))]


def server_environment(cfg: RolloutConfig, index: int, key: str) -> dict[str, str]:
    """This process's environment without its rank's variables, plus what the server needs; `key` becomes its API key."""
    dropped = of_the_rank(os.environ).union(_RANK_VARIABLES)
    inherited = {name: value for name, value in os.environ.items() if name not in dropped and not name.startswith(_RANK_PREFIXES)}
    path = os.pathsep.join(filter(None, [str(_PACKAGE_ROOT), inherited.get("PYTHONPATH")]))
    return inherited | {
        "PYTHONPATH": path,
        "VLLM_API_KEY": key,
        "VLLM_HOST_IP": cfg.host,  # else vLLM looks for the route to the internet, which a compute node may not have
        # Its front end waits for its engine as long as we wait for both, and not 600 s whatever rollout.startup_timeout_s.
        "VLLM_ENGINE_READY_TIMEOUT_S": str(math.ceil(cfg.startup_timeout_s)),
        "VLLM_SERVER_DEV_MODE": "1",  # the endpoints that pause, update and resume; RequireKey guards them
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        **(_gpu_environment(cfg, index) if accelerated() else _cpu_environment(cfg, index)),
    }


def _cpu_environment(cfg: RolloutConfig, index: int) -> dict[str, str]:
    """Cores are distributed over the servers; the trainer computes on the same cores while no server generates."""
    cores = sorted(os.sched_getaffinity(0))
    mine = server_cores(cores, cfg.servers, index)
    # vLLM compiles one sampler function even when eager: seconds of C++ compiler on the first request, for nothing.
    eager = {"TORCHDYNAMO_DISABLE": "1", "OMP_WAIT_POLICY": "passive"}
    if cfg.tensor > 1:
        per_rank = [server_cores(mine, cfg.tensor, rank) for rank in range(cfg.tensor)]
        return eager | {"VLLM_CPU_OMP_THREADS_BIND": "|".join(",".join(map(str, one)) for one in per_rank)}
    # One process for engine and worker, forked from the front end: two imports of vLLM less.
    return eager | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", FORK_ENGINE: "1", "OMP_NUM_THREADS": str(len(mine))}


def server_cores(cores: list[int], servers: int, index: int) -> list[int]:
    """The cores of server `index`: an equal contiguous part, or one shared core where there are more servers than cores."""
    if servers >= len(cores):
        return [cores[index % len(cores)]]
    return cores[index * len(cores) // servers : (index + 1) * len(cores) // servers]


def _gpu_environment(cfg: RolloutConfig, index: int) -> dict[str, str]:
    """GPUs of this node after those of its training ranks, or shared with them. Raises PlacementError when there are too few."""
    devices = visible_devices(os.environ.get(VISIBLE), torch.cuda.device_count())
    mine = server_devices(devices, training_ranks_here(os.environ), index, cfg.tensor, shared=cfg.share_gpu)
    return {VISIBLE: ",".join(mine)}
