"""The state of Transformer Engine's layers beside their parameters: how FP8 scales, where that is learnt from earlier steps.

Every layer has an entry `..._extra_state`, also where it says nothing: without FP8, and with recipes that scale by what they are
about to multiply. Layers of the local spec have none, so a checkpoint that asked for the empty ones could only be read by the
layers that wrote it.
"""

from collections.abc import Mapping
from typing import Any

from megatron.core.transformer.transformer_config import TransformerConfig
from torch import nn

_ENTRY = "._extra_state"
"""Also of `..._extra_state1`: grouped experts have one for each."""


def has_scaling_state(config: TransformerConfig) -> bool:
    """Whether the layers' scaling state says something, and is needed to go on."""
    return bool(config.fp8) and config.fp8_recipe == "delayed"


def without_scaling_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a model's state dict, sharded or not, that are its parameters."""
    return {name: entry for name, entry in state.items() if _ENTRY not in name}


def load_state(model: nn.Module, state: Mapping[str, Any], *, scaling: bool) -> None:
    """Loads a state dict that has every parameter and, where `scaling`, every layer's scaling state.

    Raises KeyError naming what `state` lacks, or has too much.
    """
    missing, unexpected = model.load_state_dict(state, strict=False)
    if not scaling:
        missing = [name for name in missing if _ENTRY not in name]
    if missing or unexpected:
        raise KeyError(f"missing: {', '.join(missing) or 'nothing'}; not of this model: {', '.join(unexpected) or 'nothing'}")
