"""Transformer Engine's part in the policy: whether its layers are used, what they do besides, and what stands against it.

Nothing here imports it: its features are settings of Megatron-Core's wrappers, which do.
"""

import importlib
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from megatron_entropic import platform
from megatron_entropic.config import Config, ModelConfig
from megatron_entropic.hf.architectures import Architecture

PACKAGE = "transformer_engine"


@dataclass(frozen=True)
class Recipe:
    """One way of computing products in 8 bits."""

    format: str
    """Megatron-Core's fp8: e4m3 everywhere, or hybrid, with e5m2 for gradients."""
    multiple: int
    """Both sizes of every matrix, tokens among them, are multiples of this."""
    capability: tuple[int, int]
    """The first GPUs that have it."""
    gpus: str


RECIPES: Mapping[str, Recipe] = {
    "tensorwise": Recipe("hybrid", 16, (8, 9), "Ada, Hopper"),
    "blockwise": Recipe("e4m3", 128, (9, 0), "Hopper"),
    "mxfp8": Recipe("e4m3", 32, (10, 0), "Blackwell"),
}
"""By their names in model.fp8. Megatron-Core's default, delayed scaling, is not among them: its scales are learnt from earlier steps,
and Transformer Engine keeps them in checkpoints as pickles, which may run any code when they are read."""


def uses_transformer_engine(model: ModelConfig) -> bool:
    """Whether the layers come from Transformer Engine: when asked for, or by "auto" when it is installed and a GPU is there."""
    if model.layer_spec == "auto":
        return platform.accelerated() and _installed()
    return model.layer_spec == PACKAGE


def feature_problems(arch: Architecture, cfg: Config) -> list[str]:
    """Every reason why this machine cannot compute `arch` as the settings say, each naming the setting; [] if it can."""
    engine = uses_transformer_engine(cfg.model)
    if engine and not _installed():
        return [f"model.layer_spec={PACKAGE}, but the package cannot be imported; install it, or set model.layer_spec=local"]
    return [*_overlap_problems(cfg, engine=engine), *_fp8_problems(arch, cfg, engine=engine)]


def feature_settings(cfg: Config) -> dict[str, Any]:
    """Megatron-Core's settings of FP8 and of communication beside the products it belongs to; none where both are off."""
    settings: dict[str, Any] = {"tp_comm_overlap": True} if cfg.parallel.tensor_overlap else {}
    if cfg.model.fp8 != "none":
        settings |= {"fp8": RECIPES[cfg.model.fp8].format, "fp8_recipe": cfg.model.fp8}
    return settings


def fuse_gradient_accumulation(model: nn.Module) -> None:
    """Has every layer of Transformer Engine's add its weight gradient to the fp32 buffer in the product that makes it.

    Set on the layers and not on Megatron-Core's configuration: its own output layer, which is never called here, would ask for Apex.
    """
    for layer in model.modules():
        if hasattr(layer, "fuse_wgrad_accumulation"):
            layer.fuse_wgrad_accumulation = True  # type: ignore[assignment]


def start_tensor_overlap(arch: Architecture, cfg: Config) -> None:
    """Makes the buffers in which tensor ranks exchange activations while they multiply. Collective over the tensor ranks."""
    layers: Any = importlib.import_module(f"{PACKAGE}.pytorch")
    layers.initialize_ub(
        shape=[cfg.batch.max_tokens_per_micro_batch, arch.hidden_size],
        tp_size=cfg.parallel.tensor,
        use_fp8=cfg.model.fp8 != "none",
        dtype=getattr(torch, cfg.model.dtype),
        bootstrap_backend=platform.communication_backend(),
    )


def position_multiple(cfg: Config) -> int:
    """The number of positions of a micro-batch is a multiple of this: of the tensor ranks that share them, of FP8's sizes.

    The buffers of `tensor_overlap` have one size, so every micro-batch has.
    """
    if cfg.parallel.tensor_overlap:
        return cfg.batch.max_tokens_per_micro_batch
    return (cfg.parallel.tensor if cfg.parallel.sequence else 1) * (RECIPES[cfg.model.fp8].multiple if cfg.model.fp8 != "none" else 1)


def _installed() -> bool:
    return importlib.util.find_spec(PACKAGE) is not None


def _overlap_problems(cfg: Config, *, engine: bool) -> Iterator[str]:
    if not cfg.parallel.tensor_overlap:
        return
    setting = "parallel.tensor_overlap=true"
    if not engine or not platform.accelerated():
        yield f"{setting} needs Transformer Engine's layers (model.layer_spec) and a GPU"
    if not cfg.parallel.sequence:
        yield f"{setting} needs parallel.sequence=true: it overlaps the exchanges of sequence parallelism"
    multiple = cfg.parallel.tensor * (RECIPES[cfg.model.fp8].multiple if cfg.model.fp8 != "none" else 1)
    if cfg.batch.max_tokens_per_micro_batch % multiple:
        yield f"{setting} needs batch.max_tokens_per_micro_batch to be a multiple of {multiple}, for every micro-batch has that size"


def _fp8_problems(arch: Architecture, cfg: Config, *, engine: bool) -> Iterator[str]:
    if cfg.model.fp8 == "none":
        return
    setting, recipe = f"model.fp8={cfg.model.fp8}", RECIPES[cfg.model.fp8]
    if not engine:
        yield f"{setting} needs Transformer Engine's layers, and model.layer_spec={cfg.model.layer_spec} takes others here"
    capability = platform.compute_capability()
    if capability is None or capability < recipe.capability:
        found = "there is no GPU" if capability is None else f"this one has {capability[0]}.{capability[1]}"
        yield f"{setting} needs a GPU of compute capability {recipe.capability[0]}.{recipe.capability[1]} ({recipe.gpus}); {found}"
    if cfg.model.dtype != "bfloat16":
        yield f"{setting} needs model.dtype=bfloat16, not {cfg.model.dtype}"
    for name, size in _matrix_sizes(arch, cfg.parallel.tensor).items():
        if size % recipe.multiple:
            yield f"{setting} needs sizes that are multiples of {recipe.multiple}; {name} is {size}"


def _matrix_sizes(arch: Architecture, tensor: int) -> dict[str, int]:
    """The sizes of a rank's matrices. Experts are not split over tensor ranks."""
    groups = max(arch.num_kv_heads // tensor, 1)
    heads = arch.num_heads // tensor
    return {
        "the hidden size": arch.hidden_size,
        f"the size of all heads over parallel.tensor={tensor}": heads * arch.head_dim,
        f"that of queries, keys and values over parallel.tensor={tensor}": (heads + 2 * groups) * arch.head_dim,
        "the inner size of MLPs or experts": arch.ffn_hidden_size // (1 if arch.num_experts else tensor),
    }
