"""The engine's gradients with the output layer's accumulated in main_grad, in Megatron's own DistributedDataParallel, and without."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_entropic.config import Config
from megatron_entropic.config.loading import load_config
from megatron_entropic.control import Coefficients
from megatron_entropic.distributed.parallel import Parallel, initialize_parallel
from megatron_entropic.entropy import TokenStatistics, linear_token_statistics, token_statistics
from megatron_entropic.policy import engine
from megatron_entropic.policy.batching import Batch
from megatron_entropic.policy.engine import Policy
from megatron_entropic.policy.objective import Objective
from tests import tiny_models
from tests.entropy.oracle import gradient_rounding
from tests.policy.test_engine import make_samples
from tests.run_ranks import run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.distributed]
LAYOUTS = {
    "tp1": [],
    "tp2": ["parallel.tensor=2"],
    "tp2-sp": ["parallel.tensor=2", "parallel.sequence=true"],
    "pp2": ["parallel.pipeline=2"],
    "dp2": ["parallel.data=2"],
}
HEADS = ("output_layer.weight", "embedding.word_embeddings.weight")


DTYPES = ("float32", "bfloat16")
SETTINGS = ("parallel.tensor=1", "batch.max_tokens_per_micro_batch=32", "model.vocab_pad_multiple=4")


def gradients(cfg: Config, parallel: Parallel, statistics: Callable[..., TokenStatistics], bonus: float = 0.05) -> dict[str, Tensor]:
    """main_grad of every parameter of this rank after one pass over the batch's micro-batches, before the optimizer."""
    engine.linear_token_statistics = statistics
    policy = Policy(cfg, parallel)
    batch = Batch(make_samples())
    assert len(policy._micro_batches(batch)) > 1
    policy.ddp.zero_grad_buffer()
    policy._run(batch, Objective(cfg, Coefficients(-0.6, bonus)), forward_only=False)
    return {name: parameter.main_grad.clone() for name, parameter in policy.model.named_parameters()}  # type: ignore[misc, operator]


def through_grad(*args: Any, accumulate_main_grad: bool, **options: Any) -> TokenStatistics:
    assert accumulate_main_grad, "the engine asks for it"
    return linear_token_statistics(*args, **options)


def distances(configs: list[Config]) -> list[dict[str, float]]:
    """Of each configuration's parameters: how far the two ways are apart, relative to the gradient's size."""
    parallel = initialize_parallel(configs[0].parallel, 0)
    found = []
    for cfg in configs:
        plain, fused = (gradients(cfg, parallel, way) for way in (through_grad, linear_token_statistics))
        assert all(gradient.dtype == torch.float32 for gradient in fused.values())
        assert all(gradient.any() for gradient in fused.values())
        found.append({name: float((fused[name] - plain[name]).norm() / plain[name].norm()) for name in plain})
    return found


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_are_the_same(tmp_path: Path, layout: str, tied: bool) -> None:
    model = tmp_path / "model"
    tiny_models.save("qwen2_tied" if tied else "qwen2", model)
    settings = [*SETTINGS, "control.kind=entropic+aent", *LAYOUTS[layout], f"model.hf_path={model}"]
    configs = [load_config("quickstart", [*settings, f"model.dtype={dtype}"]) for dtype in DTYPES]
    ranks = run_ranks(distances, configs[0].parallel.world_size, configs)
    for rank in ranks:
        for dtype, of_parameters in zip(DTYPES, rank, strict=True):
            for name, distance in of_parameters.items():
                assert distance <= (1e-6 if dtype == "float32" else gradient_rounding(torch.bfloat16)), (dtype, name)
    for rank in (ranks[0], ranks[-1]):  # of pipeline stages, the first and the last
        assert any(name in HEADS for name in rank[0])


def errors(cfg: Config) -> list[float]:
    """Of the output layer's gradient both ways, against the sum over micro-batches in float64 of the same rounded factors."""
    factors: list[tuple[Tensor, Tensor]] = []

    def recording(hidden: Tensor, weight: Tensor, targets: Tensor, **options: Any) -> TokenStatistics:
        """As `through_grad`, and keeps the gradient of the logits (rounded to bfloat16, as every way does) and hidden."""
        logits = (hidden @ weight.T).detach().requires_grad_()
        for name in ("sequence_parallel", "accumulate_main_grad"):
            del options[name]
        again = token_statistics(logits, targets, **options)
        statistics = linear_token_statistics(hidden, weight, targets, **options)
        hidden_TH = hidden.detach().flatten(0, -2)

        def note(grad: Tensor) -> None:
            (grad_logits,) = torch.autograd.grad(again.log_prob, logits, grad)
            factors.append((grad_logits.flatten(0, -2), hidden_TH))

        statistics.log_prob.register_hook(note)
        return statistics

    parallel = initialize_parallel(cfg.parallel, 0)
    plain, fused = (gradients(cfg, parallel, way, bonus=0.0)["output_layer.weight"] for way in (recording, linear_token_statistics))
    exact = sum(grad_TV.double().T @ hidden_TH.double() for grad_TV, hidden_TH in factors) / Batch(make_samples()).response_tokens
    return [float((gradient - exact).norm() / exact.norm()) for gradient in (plain, fused)]


def test_bfloat16_gradients_add_up_in_float32(tmp_path: Path) -> None:
    """Through .grad each micro-batch's gradient is rounded to bfloat16 before it is added; in main_grad it never is."""
    tiny_models.save("qwen2", tmp_path / "model")
    settings = [*SETTINGS, "control.kind=entropic", "model.dtype=bfloat16", f"model.hf_path={tmp_path / 'model'}"]
    ((plain, fused),) = run_ranks(errors, 1, load_config("quickstart", settings))
    assert plain > 1e-3
    assert fused < plain / 10
