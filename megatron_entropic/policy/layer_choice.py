"""Choice between Transformer Engine's layers and Megatron-Core's own."""

import importlib.util

from megatron_entropic import platform
from megatron_entropic.config import ModelConfig


def uses_transformer_engine(model: ModelConfig) -> bool:
    """Whether the layers come from Transformer Engine: when asked for, or by "auto" when it is installed and a GPU is there."""
    if model.layer_spec == "auto":
        return platform.accelerated() and importlib.util.find_spec("transformer_engine") is not None
    return model.layer_spec == "transformer_engine"
