"""Small Hugging Face directories for the tests: random weights, the character tokenizer of the tiny model."""

import shutil
from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

TINY_DECOMPOSE = Path(__file__).resolve().parent.parent / "models" / "tiny-decompose"


def random_qwen3(folder: Path, *, layers: int = 4, seed: int = 0) -> Path:
    """A random float32 Qwen3 that divides by 2 and 4 on every axis, with the tiny model's tokenizer (99 ids)."""
    config = Qwen3Config(
        vocab_size=99,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=16,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        initializer_range=0.1,
    )
    torch.manual_seed(seed)
    Qwen3ForCausalLM(config).float().save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY_DECOMPOSE / name, folder / name)
    return folder
