"""The settings that `megatron-entropic new` chooses for a model, a data file and the devices that are there, each with its reason."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

from megatron_entropic.commands.new_data import DataFacts
from megatron_entropic.config import (
    BatchConfig,
    Config,
    ControlConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    RolloutConfig,
    TaskConfig,
)
from megatron_entropic.config.loading import ConfigError
from megatron_entropic.hf.architectures import Architecture
from megatron_entropic.planning.cluster import GB, GPUS, Assumptions, Cluster, cluster_of
from megatron_entropic.planning.layouts import Site, search
from megatron_entropic.planning.model_memory import ModelSize
from megatron_entropic.planning.peak import gpu_kind
from megatron_entropic.system.gpus import GPU

MIB_PER_GB = 1024
LEARNING_RATES = ((1_000_000_000, 1e-6), (10_000_000, 5e-6), (0, 2e-4))
"""From so many parameters on, the largest model's first."""
UNKNOWN_RESPONSE = 1024
"""Tokens of a response where the data says nothing of how long one is."""
CPU_RESPONSE = 256
"""The same at most on a CPU."""


@dataclass(frozen=True)
class Devices:
    """What the run will compute on; no cluster: a CPU."""

    cluster: Cluster | None
    named: str

    @classmethod
    def found(cls, gpus: list[GPU]) -> "Devices":
        """Of this machine."""
        if not gpus:
            return cls(None, "the CPU")
        memory = min(gpu.memory for gpu in gpus) / MIB_PER_GB
        nearest = min(GPUS, key=lambda kind: abs(GPUS[kind].memory_gb - memory))
        kind = gpu_kind(gpus[0].name) or nearest
        cluster = cluster_of(gpu=kind, memory_gb=memory, gpus=len(gpus), nodes=None, gpus_per_node=len(gpus), needed=1)
        return cls(cluster, f"{len(gpus)} x {gpus[0].name}")

    @classmethod
    def given(cls, kind: str, count: int) -> "Devices":
        """GPUs elsewhere, in nodes of eight."""
        cluster = cluster_of(gpu=kind, memory_gb=None, gpus=count, nodes=None, gpus_per_node=min(8, count), needed=1)
        return cls(cluster, f"{count} x {kind}")


@dataclass(frozen=True)
class Choices:
    """The sections of the recipe, and why: a line of words for each."""

    cfg: Config
    steps: int
    why: dict[str, str]


def choose(hf_path: Path, arch: Architecture, data: DataFacts, devices: Devices, *, chat_template: bool) -> Choices:
    """Raises ConfigError when no layout of the devices fits the model, or the prompts leave no room for a response."""
    on_cpu, parameters = devices.cluster is None, ModelSize.of(arch).total
    why: dict[str, str] = {}
    response, why["response"], drops = _response(arch, data, on_cpu=on_cpu)
    sample = min(data.prompts.longest + response, arch.max_positions)
    tokens = max(2048 if on_cpu else 16384, sample)
    prompts = min(8 if on_cpu else 128, data.rows)
    lr = next(rate for least, rate in LEARNING_RATES if parameters >= least)
    why["lr"] = f"for {parameters / 1e6:.4g} million parameters; larger models take smaller steps"
    why["batch"] = f"{prompts} prompts x 8 samples a step; micro-batches hold a sample of {sample} tokens and more"
    cfg = Config(
        model=ModelConfig(hf_path=hf_path, dtype="float32" if on_cpu else "bfloat16"),
        batch=BatchConfig(prompts_per_step=prompts, samples_per_prompt=8, max_tokens_per_micro_batch=tokens),
        control=ControlConfig(kind="entropic", target_entropy=1.0, target_unit="initial"),
        optimizer=OptimizerConfig(lr=lr),
        rollout=RolloutConfig(engine="local" if on_cpu else "vllm", max_new_tokens=response),
        task=TaskConfig(chat_template=chat_template, overlong_prompts="drop" if drops else "refuse"),
    )
    why["dtype"] = "a CPU computes fastest in it" if on_cpu else "weights and activations; masters are float32 all the same"
    cfg, why["layout"] = _laid_out(cfg, arch, data, devices)
    passes = math.ceil(2 * data.rows / prompts)
    return Choices(cfg, min(max(passes, 20), 100 if on_cpu else 1000), why)


def _response(arch: Architecture, data: DataFacts, *, on_cpu: bool) -> tuple[int, str, bool]:
    """(longest response, why, whether the longest prompts must be left out)."""
    if data.solutions is not None:
        wanted, why = (
            _rounded(2 * data.solutions.most),
            f"twice the 99th percentile of the data's worked solutions ({data.solutions.most})",
        )
    else:
        wanted, why = UNKNOWN_RESPONSE, "the data has final answers alone, which say nothing of how long a response is"
    if on_cpu and wanted > CPU_RESPONSE:
        wanted, why = CPU_RESPONSE, f"as many as a CPU makes in reasonable time; {why}"
    left = arch.max_positions - data.prompts.longest
    if wanted <= left:
        return wanted, why, False
    if (least := arch.max_positions // 4) <= left:
        return left, f"what the longest prompt leaves of the model's context of {arch.max_positions}", False
    if data.prompts.median + least > arch.max_positions:
        raise ConfigError(
            f"{data.path}: its prompts have {data.prompts}, and the model's context {arch.max_positions} tokens: most leave less than "
            "a quarter of it for a response; take a model with a longer context, or shorter prompts"
        )
    return least, f"a quarter of the model's context of {arch.max_positions}; prompts that leave less are left out", True


def _rounded(tokens: int) -> int:
    return max(64, -(-tokens // 64) * 64)


def _laid_out(cfg: Config, arch: Architecture, data: DataFacts, devices: Devices) -> tuple[Config, str]:
    """The settings under the fastest layout that fits, by `plan`."""
    if devices.cluster is None:
        return replace(cfg, parallel=ParallelConfig()), "one rank that generates too; rollout.engine=vllm starts a server beside it"
    if devices.cluster.gpus == 1:
        shared = replace(cfg.rollout, share_gpu=True)
        return replace(cfg, rollout=shared), "one GPU, which the rank and its server share"
    assumed = Assumptions.of([f"prompt_tokens={max(1, data.prompts.median)}"])
    fit, misfit = search(Site(arch, devices.cluster, assumed), cfg)
    if not fit:
        nearest = f": the nearest needs {misfit[0].needed / GB:.0f} GB of a GPU's {devices.cluster.gpu.memory_gb:g}" if misfit else ""
        raise ConfigError(
            f"no layout of {devices.named} fits this model{nearest}; name more GPUs by --gpus N --gpu KIND, or larger ones"
        )
    best = fit[0]
    return best.cfg, f"the fastest that fits {devices.named} by `megatron-entropic plan`: a step of about {best.time.total:.0f} s"
