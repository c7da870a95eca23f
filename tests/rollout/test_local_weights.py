"""A checkpoint's tensors reach a transformers model that keeps its experts fused, and a misfit is named as the checkpoint names it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megatron_entropic.rollout.local_weights import checkpoint_tensors, copy_weights
from tests import tiny_models

TOKENS = torch.arange(1, 60)[None]


@pytest.mark.parametrize("kind", [*tiny_models.MOE, "llama", "qwen2_tied"])
def test_a_checkpoint_fills_the_model(kind: str, tmp_path: Path) -> None:
    model = tiny_models.save(kind, tmp_path)
    with torch.no_grad():
        expected = model(TOKENS).logits
        for parameter in model.parameters():
            parameter.add_(1.0)
        assert not torch.allclose(model(TOKENS).logits, expected)
        assert copy_weights(model, iter(load_file(tmp_path / "model.safetensors").items())) == []
        assert torch.equal(model(TOKENS).logits, expected)


@pytest.mark.parametrize("kind", tiny_models.MOE)
def test_the_models_tensors_have_the_names_that_transformers_saves(kind: str, tmp_path: Path) -> None:
    model = tiny_models.save(kind, tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    ours = checkpoint_tensors(model)
    assert ours.keys() == saved.keys()
    for name, tensor in saved.items():
        assert torch.equal(ours[name], tensor), name


def test_misfits_of_experts_are_named() -> None:
    model = tiny_models.build("mixtral")
    weights = dict(checkpoint_tensors(model))
    block = "model.layers.2.block_sparse_moe"
    missing = weights.pop(f"{block}.experts.3.w2.weight")
    weights[f"{block}.experts.1.w3.weight"] = torch.zeros(3, 2)
    weights[f"{block}.experts.4.w2.weight"] = missing
    assert copy_weights(model, iter(weights.items())) == [
        f"{block}.experts.1.w3.weight: shape (3, 2), the model's is (48, 32)",
        f"{block}.experts.4.w2.weight: the model has no such weight",
        f"{block}.experts.3.w2.weight: missing",
    ]
