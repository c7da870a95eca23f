"""How much of the smoke test this machine is given: real shapes on a GPU, tiny ones on a CPU.

Shapes: R rows and C columns of a weight.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_entropic.platform import accelerated
from megatron_entropic.system.shipped_files import models_folder

QWEN2_5_1_5B: dict[str, Any] = {
    "vocab_size": 151_936,
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}
"""The shape of Qwen2.5-1.5B, with a shorter context."""
TINY: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
_WHOLE_MODEL_BYTES = 60 * 2**30
"""GPU memory from which on the optimizer of all 28 layers fits beside a server."""
_FEWER_LAYERS = 8


@dataclass(frozen=True)
class MachineSize:
    """Device, type of weights, the random model's shape and the tokens of a packing."""

    device: torch.device
    dtype: str
    shape: dict[str, Any]
    tokens: int

    @property
    def model_text(self) -> str:
        """The random model in a few words."""
        shape = self.shape
        return f"random Qwen2, {shape['num_hidden_layers']} layers of {shape['hidden_size']}, vocabulary {shape['vocab_size']}"


def machine_size() -> MachineSize:
    """By the first GPU's memory; a CPU gets what takes seconds."""
    if not accelerated():
        return MachineSize(torch.device("cpu"), "float32", TINY, tokens=256)
    memory = torch.cuda.get_device_properties(0).total_memory
    layers = QWEN2_5_1_5B["num_hidden_layers"] if memory >= _WHOLE_MODEL_BYTES else _FEWER_LAYERS
    return MachineSize(torch.device("cuda", 0), "bfloat16", QWEN2_5_1_5B | {"num_hidden_layers": layers}, tokens=4096)


def save_random_model(folder: Path, size: MachineSize) -> Path:
    """Saves a random Qwen2 of this size, bfloat16 weights, with the tiny model's tokenizer; returns `folder`.

    No norm, bias or weight is left at a value that hides a mistake, and weights are of a size that makes tokens differ.
    """
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    rope = {"rope_type": "default", "rope_theta": 1e6}
    config = Qwen2Config(
        **size.shape,
        rope_parameters=rope,
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    with size.device, _default_dtype(torch.bfloat16):
        model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.normal_(1.0, 0.2)
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.3)
            else:
                weight_RC = parameter
                weight_RC.normal_(0.0, weight_RC.shape[1] ** -0.5)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(models_folder() / "tiny-decompose" / name, folder / name)
    del model
    if size.device.type == "cuda":
        torch.cuda.empty_cache()  # a server that is started next counts what is free
    return folder


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """torch's default type within a block: weights are made in it, and not in float32 first."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
