"""One update of the engine against the formulas, written out on transformers' logits in float64."""

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_entropic.config import Config
from megatron_entropic.config.loading import load_config
from megatron_entropic.control import Coefficients, make_controller
from megatron_entropic.distributed.parallel import initialize_parallel
from megatron_entropic.policy.batching import Batch, Sample
from megatron_entropic.policy.engine import Policy
from megatron_entropic.policy.update_stats import UpdateStats
from tests.run_ranks import run_ranks
from tests.tiny_models import save_divisible

TEMPERATURE, CLAMP, ALPHA, BONUS = 0.8, 0.3, -0.6, 0.05
pytestmark = [pytest.mark.slow, pytest.mark.distributed]


def settings(model: Path, *overrides: str) -> Config:
    """With EntroPIC and AEnt together, unless the overrides name another kind."""
    base = ["parallel.tensor=1", "batch.max_tokens_per_micro_batch=64"]
    if not any(override.startswith("control.kind=") for override in overrides):
        base += ["control.kind=entropic+aent", f"control.clamp={CLAMP}"]
    return load_config("quickstart", [*base, f"model.hf_path={model}", f"rollout.temperature={TEMPERATURE}", *overrides])


def make_samples(seed: int = 0) -> list[Sample]:
    rng = random.Random(seed)
    samples = []
    for _ in range(12):
        # From 2: transformers gives the padding token (0) no embedding gradient.
        prompt = [rng.randrange(2, 99) for _ in range(rng.randint(1, 6))]
        response = [rng.randrange(2, 99) for _ in range(rng.randint(1, 9))]
        samples.append(Sample(prompt, response, [rng.uniform(-6, -2) for _ in response], rng.gauss(0, 1)))
    return samples


def old_log_probs(batch: Batch, current_N: torch.Tensor) -> torch.Tensor:
    """Old log-probs near the current ones, so that some ratios are clipped on either side."""
    return current_N + torch.randn(batch.response_tokens, generator=torch.Generator().manual_seed(1)) * 0.3


def update_once(cfg: Config, old_N: torch.Tensor | None, advantage: float | None = None) -> tuple[UpdateStats, list[float], bool]:
    """(statistics of the update, log-probs of the pass before it, whether any weight changed)."""
    policy = Policy(cfg, initialize_parallel(cfg.parallel, 0))
    samples = make_samples()
    if advantage is not None:
        samples[3] = Sample(samples[3].prompt_ids, samples[3].response_ids, samples[3].sampler_log_probs, advantage)
    batch = Batch(samples)
    policy.prepare(batch)
    assert batch.old_log_probs_N is not None
    prepared = batch.old_log_probs_N.tolist()
    batch.old_log_probs_N = old_N
    before = [parameter.detach().clone() for parameter in policy.model.parameters()]
    stats = policy.update(batch, Coefficients(ALPHA, BONUS))
    changed = any(not torch.equal(a, b) for a, b in zip(before, policy.model.parameters(), strict=True))
    return stats, prepared, changed


def reference(cfg: Config, model_dir: Path) -> dict[str, Any]:
    """method: L = (1/N) sum [-min(r A, clip(r) A)] + alpha (1/D) sum [-m r |A|] - c (1/N) sum Hc, in float64."""
    model = AutoModelForCausalLM.from_pretrained(model_dir).double()
    batch = Batch(make_samples())
    log_probs, entropies, clamped, mean_lowerings, advantages = [], [], [], [], []
    for sample in batch.samples:
        ids = torch.tensor([[*sample.prompt_ids, *sample.response_ids]])
        logits_TV = model(ids).logits[0, len(sample.prompt_ids) - 1 : -1] / TEMPERATURE
        log_p_TV = logits_TV.log_softmax(-1)
        log_probs.append(log_p_TV.gather(1, torch.tensor(sample.response_ids)[:, None])[:, 0])
        entropies.append(-(log_p_TV.exp() * log_p_TV).sum(-1))
        mean_lowerings.append((log_p_TV.exp() ** 2 * (log_p_TV + entropies[-1][:, None])).sum(-1))
        kept = 99 - math.floor(CLAMP * 99)
        log_q = logits_TV.topk(kept, dim=-1).values.log_softmax(-1)
        clamped.append(-(log_q.exp() * log_q).sum(-1))
        advantages += [sample.advantage] * len(sample.response_ids)
    log_prob_N, entropy_N, clamped_N, advantage_N = (
        torch.cat(log_probs), torch.cat(entropies), torch.cat(clamped), torch.tensor(advantages).double()
    )  # fmt: skip
    old_N = old_log_probs(batch, log_prob_N.detach().float()).double()
    ratio_N = (log_prob_N - old_N).exp()
    clipped_N = ratio_N.clamp(1 - cfg.algorithm.clip_low, 1 + cfg.algorithm.clip_high)
    policy_loss = -torch.minimum(ratio_N * advantage_N, clipped_N * advantage_N).mean()
    high_N = (log_prob_N.exp() > cfg.control.high_prob_threshold).double()
    own_N = log_prob_N.exp() * (log_prob_N + entropy_N)
    exact_N = own_N - torch.cat(mean_lowerings)
    mask_N = {"high_prob": high_N, "signed": torch.sign(own_N), "exact": torch.sign(exact_N)}[cfg.control.actuator].detach()
    lowers_N = (exact_N if cfg.control.actuator == "exact" else own_N).detach()
    denominator = len(mask_N) if cfg.control.denominator == "response_tokens" else mask_N.abs().sum()
    adjust = -(mask_N * ratio_N * advantage_N.abs()).sum() / denominator
    total = policy_loss + ALPHA * adjust - BONUS * clamped_N.mean()
    total.backward()
    norm = torch.stack([parameter.grad.norm() for parameter in model.parameters() if parameter.grad is not None]).norm()
    return {
        "entropy": entropy_N.mean().item(),
        "clamped_entropy": clamped_N.mean().item(),
        "policy_loss": policy_loss.item(),
        "total_loss": total.item(),
        "grad_norm": norm.item(),
        "actuated_fraction": mask_N.abs().mean().item(),
        "authority": (advantage_N.abs() * mask_N * lowers_N).mean().item(),
        "pressure": (advantage_N * lowers_N).mean().item(),
        "bonus_authority": (own_N * (log_prob_N + entropy_N)).mean().item(),
        "kl_old": (old_N - log_prob_N).mean().item(),
        "log_probs": log_prob_N.tolist(),
        "old_log_probs": old_N.float(),
    }


ACTUATORS = {
    "signed, D all": ("control.actuator=signed", "control.denominator=response_tokens"),
    "signed, D masked": ("control.actuator=signed", "control.denominator=high_prob_tokens"),
    "exact, D all": ("control.actuator=exact", "control.denominator=response_tokens"),
    "exact, D masked": ("control.actuator=exact", "control.denominator=high_prob_tokens"),
    # As released, with a threshold that some tokens of a random model are above.
    "high_prob, D masked": ("control.actuator=high_prob", "control.denominator=high_prob_tokens", "control.high_prob_threshold=0.01"),
}


@pytest.mark.parametrize("actuator", ACTUATORS)
@pytest.mark.parametrize("world_size", [1, 2])
def test_an_update_is_the_formula(tmp_path: Path, world_size: int, actuator: str) -> None:
    model = save_divisible(tmp_path / "model")
    cfg = settings(model, f"parallel.tensor={world_size}", *ACTUATORS[actuator])
    expected = reference(cfg, model)
    assert 0.1 < expected["actuated_fraction"] <= (0.9 if cfg.control.actuator == "high_prob" else 1.0)
    for stats, log_probs, changed in run_ranks(update_once, world_size, cfg, expected["old_log_probs"]):
        for field in ("entropy", "clamped_entropy", "policy_loss", "total_loss", "grad_norm", "kl_old", "actuated_fraction"):
            assert getattr(stats, field) == pytest.approx(expected[field], rel=2e-5, abs=1e-6), field
        for field in ("authority", "pressure", "bonus_authority"):
            assert getattr(stats.measurement, field) == pytest.approx(expected[field], rel=1e-4, abs=1e-9), field
        assert log_probs == pytest.approx(expected["log_probs"], abs=1e-5)
        assert 0 < stats.clip_fraction < 1
        assert stats.applied
        assert changed


def test_an_update_that_is_not_finite_leaves_the_weights_alone(tmp_path: Path) -> None:
    cfg = settings(save_divisible(tmp_path / "model"), "parallel.data=2")
    for stats, _, changed in run_ranks(update_once, 2, cfg, None, math.nan):
        assert not stats.applied
        assert not changed
        assert math.isnan(stats.total_loss)
        assert math.isfinite(stats.entropy)


def update_with_nothing(cfg: Config) -> tuple[UpdateStats, float, bool]:
    """(statistics of an update without a sample, the controller's alpha after it, whether any weight changed)."""
    policy = Policy(cfg, initialize_parallel(cfg.parallel, 0))
    controller = make_controller(cfg)
    controller.step(policy.prepare(Batch(make_samples())))
    before = [parameter.detach().clone() for parameter in policy.model.parameters()]
    stats = policy.update(Batch([]), controller.coefficients())
    controller.step(stats.measurement)
    changed = any(not torch.equal(a, b) for a, b in zip(before, policy.model.parameters(), strict=True))
    return stats, controller.coefficients().alpha, changed


def test_a_batch_without_response_tokens_holds_everything(tmp_path: Path) -> None:
    control = ("control.kind=entropic", "control.gains=fixed", "control.soft_setpoint=false", "control.target_entropy=9")
    cfg = settings(save_divisible(tmp_path / "model"), "parallel.data=2", *control)
    for stats, alpha, changed in run_ranks(update_with_nothing, 2, cfg):
        assert not stats.applied
        assert math.isnan(stats.entropy)
        assert stats.response_tokens == 0
        assert alpha == stats.coefficients.alpha == -1.0, "the output is held"
        assert not changed
