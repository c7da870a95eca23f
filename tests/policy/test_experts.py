"""The router chooses the experts that transformers chooses, in float32 and in bfloat16, near-ties included."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_entropic.config import Config, ModelConfig, ParallelConfig
from megatron_entropic.distributed.parallel import initialize_parallel, shutdown
from megatron_entropic.hf.architectures import Architecture
from megatron_entropic.policy.model import build_model
from megatron_entropic.policy.weights import load_hf_weights
from tests import tiny_models
from tests.run_ranks import run_ranks

TOKENS = 20_000


def compare_routers(hf_dir: Path, dtype_name: str) -> tuple[int, float]:
    """(tokens sent to other experts, largest difference of a weight) between our first layer's router and transformers'."""
    dtype = getattr(torch, dtype_name)
    parallel = initialize_parallel(ParallelConfig(), seed=0)
    model = build_model(Architecture.from_hf(hf_dir), Config(model=ModelConfig(dtype=dtype_name)), parallel)
    load_hf_weights(model, hf_dir, parallel)
    theirs = AutoModelForCausalLM.from_pretrained(hf_dir, dtype=dtype).model.layers[0].mlp.gate
    hidden_TH = torch.randn(TOKENS, 32, generator=torch.Generator().manual_seed(1)).to(dtype)
    with torch.no_grad():
        weights_TE, chosen_TE = model.decoder.layers[0].mlp.router(hidden_TH[:, None])
        logits_TE, their_top_weights, their_experts = theirs(hidden_TH)
    assert logits_TE.dtype is dtype
    their_weights_TE = torch.zeros(TOKENS, 4).scatter(1, their_experts, their_top_weights.float())
    shutdown()
    return int((chosen_TE != (their_weights_TE > 0)).any(1).sum()), float((weights_TE - their_weights_TE).abs().max())


@pytest.mark.parametrize("kind", tiny_models.MOE)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 2**-8)])
def test_tokens_go_to_the_experts_that_transformers_chooses(tmp_path: Path, kind: str, dtype: str, tolerance: float) -> None:
    tiny_models.save(kind, tmp_path)
    ((misrouted, difference),) = run_ranks(compare_routers, 1, tmp_path, dtype)
    assert misrouted == 0
    assert difference <= tolerance
