"""The counted operations against torch's own counter, on transformers' models."""

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, DynamicCache

from megatron_entropic.hf.architectures import Architecture
from megatron_entropic.planning.flops import forward_flops, generation_flops, projection_flops, update_flops
from megatron_entropic.planning.peak import peak_tflops
from tests.command_line import ROOT

MODEL = ROOT / "models" / "tiny-decompose"
ARCH = Architecture.from_hf(MODEL)


def model_at(path: Path) -> torch.nn.Module:
    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager", dtype=torch.float32)
    return model


def counted(counter: FlopCounterMode) -> int:
    """Without the products that transformers makes its rotations' angles with."""
    return counter.get_total_flops() - sum(counter.get_flop_counts().get("Qwen3ForCausalLM.model.rotary_emb", {}).values())


def above_the_diagonal(arch: Architecture, length: int) -> int:
    """What transformers computes of attention and masks."""
    return arch.num_layers * 4 * arch.num_heads * arch.head_dim * (length * length - length * (length + 1) // 2)


@pytest.mark.parametrize("length", [1, 7, 24])
def test_a_forward_and_backward_pass_are_counted_exactly(length: int) -> None:
    model, ids = model_at(MODEL), torch.arange(length)[None] % 90
    with FlopCounterMode(display=False) as forward:
        logits = model(ids, use_cache=False).logits
    assert counted(forward) == forward_flops(ARCH, length, length) + above_the_diagonal(ARCH, length)
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    assert backward.get_total_flops() == 2 * counted(forward)
    assert update_flops(ARCH, [(0, length)]) == 3 * forward_flops(ARCH, length, length)
    assert update_flops(ARCH, [(0, length)], forward_passes=1.5) == 4.5 * forward_flops(ARCH, length, length)


def test_generation_is_counted_exactly() -> None:
    model, (prompt, response) = model_at(MODEL), (5, 9)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        cache = DynamicCache(config=model.config)
        ids = torch.arange(prompt)[None]
        for _ in range(response):
            logits = model(ids, past_key_values=cache, logits_to_keep=1).logits
            ids = logits.argmax(-1)
    assert counted(counter) == generation_flops(ARCH, [(prompt, response)], 1) + above_the_diagonal(ARCH, prompt)
    once = generation_flops(ARCH, [(prompt, response)] * 4, 4)
    assert once == 4 * generation_flops(ARCH, [(prompt, response)], 1) - 3 * forward_flops(ARCH, prompt, 1), "a prompt is read once"


def test_an_experts_token_takes_its_own_experts_and_the_router() -> None:
    dense = Architecture.from_hf(ROOT / "recipes" / "architectures" / "Qwen3-8B-Base")
    moe = Architecture.from_hf(ROOT / "recipes" / "architectures" / "Qwen3-30B-A3B")
    per_expert, router = 6 * moe.hidden_size * moe.ffn_hidden_size, 2 * moe.hidden_size * 128
    attention = 2 * moe.hidden_size * (2 * 32 + 2 * 4) * 128
    assert projection_flops(moe) == attention + 8 * per_expert + router
    total = dense.num_layers * projection_flops(dense) + 2 * dense.hidden_size * dense.vocab_size
    assert total / 2 == pytest.approx(8.19e9 - dense.hidden_size * dense.vocab_size, rel=0.001), "its parameters, but the embedding's"


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA A100-SXM4-40GB", 312.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA B200", 2250.0),
        ("Tesla T4", None),
    ],
)
def test_peaks_go_by_the_drivers_names(name: str, peak: float | None) -> None:
    assert peak_tflops(name) == peak
