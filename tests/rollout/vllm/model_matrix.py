"""Tiny models that between them have every property that a served model may have, in few combinations."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.rollout.vllm.vllm_world import CHARACTERS, EOS, write_tokenizer

LONGER = 128
"""A vocabulary longer than the tokenizer."""

_COMMON = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,  # not hidden size / heads, and the smallest that vLLM serves on a CPU
    "max_position_embeddings": 512,
    "eos_token_id": EOS,
    "bos_token_id": None,
    "pad_token_id": 0,
}
_DENSE = {"intermediate_size": 96}
_FAMILIES: Mapping[str, dict[str, Any]] = {
    "llama": _DENSE,
    "mistral": _DENSE | {"sliding_window": None},
    "qwen2": _DENSE | {"hidden_size": 128},  # its heads are hidden size / heads
    "qwen3": _DENSE,
    "mixtral": {"intermediate_size": 80, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"intermediate_size": 96, "moe_intermediate_size": 48, "num_experts": 4, "num_experts_per_tok": 2},
}
_ROPE: Mapping[str, dict[str, Any]] = {
    "default": {},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 128},
}


@dataclass(frozen=True)
class Served:
    """A model, the dtype that policy and server hold it in, and the server's tensor-parallel ranks."""

    family: str
    tied: bool
    dtype: str
    tensor: int = 1
    rope: str = "default"
    vocab_size: int = len(CHARACTERS)
    more: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        tied = "tied" if self.tied else "untied"
        words = [self.family, tied, self.dtype, f"tp{self.tensor}", self.rope, str(self.vocab_size), *self.more]
        return "-".join(words)

    def write(self, folder: Path) -> Path:
        """A random float32 model in `folder`, with nothing left at a value that hides a mistake."""
        write_tokenizer(folder)
        rope = {"rope_parameters": {"rope_type": self.rope, "rope_theta": 30000.0, **_ROPE[self.rope]}}
        settings = _COMMON | _FAMILIES[self.family] | rope | {"vocab_size": self.vocab_size} | self.more
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(self.family, tie_word_embeddings=self.tied, **settings))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name:
                    parameter.normal_(1.0, 0.3)
                elif name.endswith("bias"):
                    parameter.normal_(0.0, 0.5)
                elif name.endswith("gate.weight"):
                    parameter.normal_(0.0, 1.0)  # a router that decides, so that no rounding changes which experts it takes
                else:
                    parameter.normal_(0.0, 0.1)
        model.float().save_pretrained(folder)
        return folder


MATRIX = (
    Served("llama", tied=False, dtype="float32", rope="llama3"),
    Served("llama", tied=True, dtype="bfloat16", tensor=2, rope="llama3", vocab_size=LONGER),
    Served("llama", tied=True, dtype="float32", rope="linear", more={"hidden_size": 128, "head_dim": None}),
    Served("mistral", tied=False, dtype="bfloat16", rope="yarn"),
    Served("mistral", tied=True, dtype="float32", rope="yarn", vocab_size=LONGER),
    Served("qwen2", tied=True, dtype="float32", tensor=2, vocab_size=LONGER),
    Served("qwen2", tied=False, dtype="bfloat16", rope="yarn"),
    Served("qwen2", tied=True, dtype="bfloat16", rope="dynamic"),
    Served("qwen3", tied=True, dtype="bfloat16", vocab_size=LONGER),
    Served("qwen3", tied=False, dtype="float32", tensor=2, rope="linear"),
    Served("qwen3", tied=True, dtype="float32", tensor=2, rope="yarn"),
    Served("qwen3_moe", tied=False, dtype="float32", tensor=2, more={"norm_topk_prob": True}),
    Served("qwen3_moe", tied=True, dtype="bfloat16", vocab_size=LONGER, more={"norm_topk_prob": False}),
    Served("mixtral", tied=False, dtype="bfloat16", rope="linear"),
    Served("mixtral", tied=True, dtype="float32", vocab_size=LONGER),
)
"""Every family tied and untied, in both dtypes; every property with several families."""
