"""Updates on stale rollouts, against the formulas on transformers' logits in float64.

Shapes: N response tokens of the batch, T of one sample, V vocabulary.
"""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_entropic.config import Config
from megatron_entropic.control import Coefficients
from megatron_entropic.distributed.parallel import initialize_parallel
from megatron_entropic.policy.batching import Batch, Sample
from megatron_entropic.policy.engine import Policy
from megatron_entropic.policy.update_stats import UpdateStats
from tests.policy.test_engine import ALPHA, TEMPERATURE, make_samples, settings
from tests.run_ranks import run_ranks
from tests.tiny_models import save_divisible

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


def update_twice(cfg: Config, samples: list[Sample]) -> list[UpdateStats]:
    """Two updates on halves of the batch after one log-prob pass: in the second the policy is no longer the one before the step."""
    policy = Policy(cfg, initialize_parallel(cfg.parallel, 0))
    batch = Batch(samples)
    policy.prepare(batch)
    return [policy.update(half, Coefficients(ALPHA, 0.0)) for half in batch.mini_batches(2)]


def log_probs(model: Any, sample: Sample) -> tuple[torch.Tensor, torch.Tensor]:
    """(log-probs of the response, entropies), [T] each."""
    ids = torch.tensor([[*sample.prompt_ids, *sample.response_ids]])
    log_p_TV = (model(ids).logits[0, len(sample.prompt_ids) - 1 : -1] / TEMPERATURE).log_softmax(-1)
    return log_p_TV.gather(1, torch.tensor(sample.response_ids)[:, None])[:, 0], -(log_p_TV.exp() * log_p_TV).sum(-1)


def stale_samples(model: Any) -> list[Sample]:
    """Samples of a policy some way off the present one, so that ratios are clipped on either side."""
    generator = torch.Generator().manual_seed(2)
    samples = []
    for sample in make_samples():
        noise_T = 0.3 * torch.randn(len(sample.response_ids), generator=generator)
        sampler_T = log_probs(model, sample)[0].detach().float() + noise_T
        samples.append(dataclasses.replace(sample, sampler_log_probs=sampler_T.tolist()))
    return samples


def expected_update(cfg: Config, model: Any, samples: list[Sample]) -> dict[str, float]:
    """(1/N) sum w [-min(r A, clip(r) A) - alpha m r |A|] of the first update; r is to the sampler when there is no cap."""
    cap = cfg.algorithm.sampler_correction_cap
    pairs = [log_probs(model, sample) for sample in samples]
    log_prob_N, entropy_N = torch.cat([pair[0] for pair in pairs]), torch.cat([pair[1] for pair in pairs])
    sampler_N = torch.tensor([value for sample in samples for value in sample.sampler_log_probs]).double()
    advantage_N = torch.tensor([sample.advantage for sample in samples for _ in sample.response_ids]).double()
    before_N = log_prob_N.detach()
    weight_N = (before_N - sampler_N).exp().clamp(max=cap) if cap else torch.ones_like(before_N)
    ratio_N = (log_prob_N - (before_N if cap else sampler_N)).exp()
    clipped_N = ratio_N.clamp(1 - cfg.algorithm.clip_low, 1 + cfg.algorithm.clip_high)
    policy_loss = (-torch.minimum(ratio_N * advantage_N, clipped_N * advantage_N) * weight_N).mean()
    adjust = -(torch.sign(log_prob_N + entropy_N).detach() * weight_N * ratio_N * advantage_N.abs()).mean()
    total = policy_loss + ALPHA * adjust
    model.zero_grad()
    total.backward()
    return {
        "policy_loss": policy_loss.item(),
        "total_loss": total.item(),
        "grad_norm": torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm().item(),
        "logprob_gap_max": (before_N - sampler_N).abs().max().item(),
        "logprob_gap_mean": (before_N - sampler_N).abs().mean().item(),
    }


@pytest.mark.parametrize("cap", [0.0, 1.1])
@pytest.mark.parametrize("tensor", [1, 2])
def test_an_update_on_stale_rollouts_is_the_formula(tmp_path: Path, tensor: int, cap: float) -> None:
    folder = save_divisible(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(folder).double()
    overrides = ("control.kind=entropic", "control.actuator=signed", "rollout.max_staleness=1", "optimizer.lr=1e-3")
    cfg = settings(folder, *overrides, f"parallel.tensor={tensor}", f"algorithm.sampler_correction_cap={cap}")
    samples = stale_samples(model)
    expected = expected_update(cfg, model, samples[:6])
    for first, second in run_ranks(update_twice, tensor, cfg, samples):
        for field, value in expected.items():
            assert getattr(first, field) == pytest.approx(value, rel=2e-5, abs=1e-6), field
        # Without a cap ratios are to the sampler from the start, with one to the policy before the step.
        assert (first.clip_fraction > 0.1) == (cap == 0)
        assert (abs(first.kl_old) > 1e-3) == (cap == 0)
        assert abs(second.kl_old) > 1e-6


def test_the_correction_is_off_for_fresh_rollouts(tmp_path: Path) -> None:
    folder = save_divisible(tmp_path / "model")
    samples = stale_samples(AutoModelForCausalLM.from_pretrained(folder).double())
    cfg = settings(folder, "control.kind=entropic")
    first, _ = run_ranks(update_twice, 1, cfg, samples)[0]
    assert first.clip_fraction == 0
    assert first.kl_old == pytest.approx(0, abs=1e-6)
