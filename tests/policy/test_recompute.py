"""Recomputation changes memory alone: gradients and the update are the same bits, in every layout."""

from pathlib import Path

import numpy as np
import pytest

from megatron_entropic.config import Config
from megatron_entropic.config.loading import load_config
from megatron_entropic.control import Coefficients
from megatron_entropic.distributed.parallel import initialize_parallel
from megatron_entropic.policy.engine import Policy
from tests.planning.measured import full_batch, save_random_model
from tests.run_ranks import run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.distributed]
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "vocab_size": 1000,
    "head_dim": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
MOE = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "norm_topk_prob": True,
}
LAYOUTS = {
    "one rank": [],
    "experts": ["parallel.tensor=2", "parallel.sequence=true", "parallel.expert=2"],
    "half precision": ["model.dtype=bfloat16"],
    "tensor and sequence": ["parallel.tensor=2", "parallel.sequence=true"],
    "pipeline": ["parallel.pipeline=2"],
}


def update(cfg: Config) -> tuple[float, float, list[np.ndarray], list[np.ndarray]]:
    """(gradient norm, entropy, gradients, updated weights) of this rank, the log-prob pass included."""
    policy = Policy(cfg, initialize_parallel(cfg.parallel, 0))
    batch = full_batch(cfg, micro_batches=2)
    policy.update(batch, Coefficients(0.3, 0.0))
    policy.prepare(batch)
    stats = policy.update(batch, Coefficients(0.3, 0.0))
    parameters = list(policy.model.parameters())
    gradients = [parameter.main_grad.numpy() for parameter in parameters]
    return stats.grad_norm, stats.measurement.entropy, gradients, [parameter.detach().float().numpy() for parameter in parameters]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_recomputed_gradients_are_the_same_bits(layout: str, tmp_path: Path) -> None:
    hf_dir = save_random_model(tmp_path / "model", **SMALL, **(MOE if layout == "experts" else {}))
    outcomes = []
    for recompute in ("none", "selective", "full"):
        settings = [f"model.hf_path={hf_dir}", "parallel.tensor=1", "batch.max_tokens_per_micro_batch=128", *LAYOUTS[layout]]
        cfg = load_config("quickstart", [*settings, f"model.recompute={recompute}"])
        outcomes.append(run_ranks(update, cfg.parallel.world_size, cfg))
    for recomputed in outcomes[1:]:
        for expected, found in zip(outcomes[0], recomputed, strict=True):
            assert found[:2] == expected[:2]
            assert found[0] > 0
            for kind in (2, 3):
                assert all(np.array_equal(a, b) for a, b in zip(found[kind], expected[kind], strict=True))
