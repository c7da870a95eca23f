"""Clip-Cov and KL-Cov in the engine: against the formulas on transformers' logits in float64, and the same for every layout.

Shapes: N response tokens of the mini-batch, T of one sample, or positions of a micro-batch, V vocabulary.
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
from megatron_entropic.entropy import TokenStatistics
from megatron_entropic.policy.batching import Batch, Sample, build_micro_batch
from megatron_entropic.policy.covariance_selection import choose_tokens
from megatron_entropic.policy.engine import Policy
from megatron_entropic.policy.objective import Objective
from megatron_entropic.policy.update_stats import UpdateStats
from tests.policy.test_engine import TEMPERATURE, make_samples, settings
from tests.run_ranks import run_ranks
from tests.tiny_models import save_divisible

LAYOUTS = {"one": (1, []), "tp2": (2, ["parallel.tensor=2"]), "pp2": (2, ["parallel.pipeline=2"]), "dp2": (2, ["parallel.data=2"])}
CHOICE = {
    # All candidates of clip_cov, or a fraction of them: then the draw must be the same, too.
    "clip_cov": ["control.kind=clip_cov", "control.cov_share=1", "control.cov_low=0.2", "control.cov_high=0.8"],
    "clip_cov-drawn": ["control.kind=clip_cov", "control.cov_share=0.1", "control.cov_low=0.2", "control.cov_high=0.8"],
    "kl_cov": ["control.kind=kl_cov", "batch.mini_batches=2", "control.cov_share=0.2", "control.cov_kl_coefficient=0.7"],
}
Reference = tuple[list[float], torch.Tensor, dict[str, float]]


def configure(model: Path, choice: str, layout: str = "one", *more: str) -> Config:
    return settings(model, *CHOICE[choice], *LAYOUTS[layout][1], "optimizer.lr=1e-2", *more)


def update_once(cfg: Config, old_N: torch.Tensor) -> UpdateStats:
    policy = Policy(cfg, initialize_parallel(cfg.parallel, 0))
    return policy.update(Batch(make_samples(), old_N), Coefficients())


def two_updates(cfg: Config) -> tuple[list[UpdateStats], list[list[bool]]]:
    """Two updates on halves of a prepared batch, and the tokens chosen for each.

    In the first the prepared log-probs are the present ones: ratios are then exactly 1 and not to their rounding.
    """
    policy = Policy(cfg, initialize_parallel(cfg.parallel, 0))
    batch = Batch(make_samples())
    policy.prepare(batch)
    stats, chosen = [], []
    for number, half in enumerate(batch.mini_batches(2)):
        with_choice = policy._with_chosen_tokens(half)
        assert with_choice.selected_N is not None
        assert (with_choice.old_log_probs_N is None) == (number == 0)
        chosen.append(with_choice.selected_N.tolist())
        stats.append(policy.update(half, Coefficients()))
    return stats, chosen


def reference(cfg: Config, model_dir: Path) -> Reference:
    """(covariances, old log-probs, what the update should report), in float64."""
    control, algorithm = cfg.control, cfg.algorithm
    model = AutoModelForCausalLM.from_pretrained(model_dir).double()
    samples = make_samples()
    parts = []
    for sample in samples:
        ids = torch.tensor([[*sample.prompt_ids, *sample.response_ids]])
        logits_TV = model(ids).logits[0, len(sample.prompt_ids) - 1 : -1] / TEMPERATURE
        parts.append(logits_TV.log_softmax(-1).gather(1, torch.tensor(sample.response_ids)[:, None])[:, 0])
    log_prob_N = torch.cat(parts)
    advantage_N = torch.tensor([sample.advantage for sample in samples for _ in sample.response_ids]).double()
    current_N = log_prob_N.detach()
    old_N = current_N.float() + 0.2 * torch.randn(len(current_N), generator=torch.Generator().manual_seed(1))
    ratio_N = (log_prob_N - old_N.double()).exp()
    covariance_N = (current_N - current_N.mean()) * (advantage_N - advantage_N.mean())
    if control.kind == "clip_cov":
        bounded_N = ratio_N.clamp(1 - algorithm.clip_low, 1 + algorithm.clip_high)
        clipped_N = bounded_N * advantage_N < ratio_N * advantage_N
        kept_N = clipped_N | (covariance_N <= control.cov_low) | (covariance_N >= control.cov_high)
        loss_N = -torch.minimum(ratio_N * advantage_N, bounded_N * advantage_N) * kept_N
        total_N, selected = loss_N, int((~kept_N).sum())
    else:
        selected = int(control.cov_share * len(current_N))
        largest_N = torch.zeros_like(current_N)
        largest_N[covariance_N.topk(selected).indices] = 1.0
        loss_N = -ratio_N * advantage_N
        total_N = loss_N + control.cov_kl_coefficient * largest_N * (log_prob_N - old_N.double()).abs()
    total_N.mean().backward()
    norm = torch.stack([parameter.grad.norm() for parameter in model.parameters() if parameter.grad is not None]).norm()
    expected = {
        "policy_loss": loss_N.mean().item(),
        "total_loss": total_N.mean().item(),
        "grad_norm": norm.item(),
        "selected_fraction": selected / len(current_N),
    }
    return covariance_N.tolist(), old_N, expected


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("choice", ["clip_cov", "kl_cov"])
def test_an_update_is_the_formula(tmp_path: Path, choice: str, layout: str) -> None:
    model = save_divisible(tmp_path / "model")
    cfg = configure(model, choice, layout)
    covariances, old_N, expected = reference(cfg, model)
    assert all(min(abs(cov - bound) for cov in covariances) > 1e-5 for bound in (cfg.control.cov_low, cfg.control.cov_high))
    assert 0.05 < expected["selected_fraction"] < 0.5
    for stats in run_ranks(update_once, LAYOUTS[layout][0], cfg, old_N):
        for field, value in expected.items():
            assert getattr(stats, field) == pytest.approx(value, rel=2e-5, abs=1e-6), field
        assert (stats.clip_fraction == 0) == (choice == "kl_cov")
        assert stats.applied


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("choice", CHOICE)
def test_every_layout_chooses_and_trains_the_same(tmp_path: Path, choice: str) -> None:
    model = save_divisible(tmp_path / "model")
    ((expected, chosen),) = run_ranks(two_updates, 1, configure(model, choice))
    assert all(any(tokens) and not all(tokens) for tokens in chosen)
    for layout in ("tp2", "pp2", "dp2"):
        for found, found_chosen in run_ranks(two_updates, 2, configure(model, choice, layout)):
            assert found_chosen == chosen
            for stats, wanted in zip(found, expected, strict=True):
                for field in ("policy_loss", "total_loss", "grad_norm", "entropy", "kl_old", "selected_fraction"):
                    assert getattr(stats, field) == pytest.approx(getattr(wanted, field), rel=1e-5, abs=1e-6), (layout, field)
    # The first half's ratios are exactly 1, whatever was prepared; the second half's policy has moved.
    assert expected[0].kl_old == 0
    assert abs(expected[1].kl_old) > 1e-4
    assert (expected[1].total_loss > expected[1].policy_loss) == (choice == "kl_cov")
    assert expected[0].total_loss == expected[0].policy_loss


@pytest.mark.parametrize("kind", ["clip_cov", "kl_cov"])
def test_selected_tokens_lose_their_policy_gradient_or_are_pulled_back(tmp_path: Path, kind: str) -> None:
    penalty = ["control.cov_kl_coefficient=0.5"] if kind == "kl_cov" else []
    cfg = settings(tmp_path, f"control.kind={kind}", *penalty, "batch.mini_batches=2")
    batch = Batch([Sample([3], [4, 5, 6], [-1.0, -2.0, -0.5], 2.0), Sample([3, 4], [7], [-1.5], -1.0)])
    old_N = torch.tensor([-1.1, -1.9, -0.6, -1.4])
    batch = dataclasses.replace(batch, old_log_probs_N=old_N, selected_N=torch.tensor([True, True, False, True]))
    micro = build_micro_batch(batch, [0, 1], device=torch.device("cpu"))
    log_prob_T = torch.zeros(len(micro.targets_T))
    log_prob_T[micro.mask_T] = current_N = torch.tensor([-1.0, -2.0, -0.5, -1.5])
    log_prob_T.requires_grad_()
    loss, sums = Objective(cfg, Coefficients()).micro_batch_loss(TokenStatistics(log_prob_T, torch.ones_like(log_prob_T), None), micro)
    loss.backward()
    assert sums["selected"].item() == 3
    gradient_N: Any = log_prob_T.grad[micro.mask_T] if log_prob_T.grad is not None else None
    advantage_N = torch.tensor([2.0, 2.0, 2.0, -1.0])
    plain_N = -(current_N - old_N).exp() * advantage_N
    sign_N = torch.sign(current_N - old_N)
    wanted_N = torch.where(batch.selected_N, 0.0 if kind == "clip_cov" else plain_N + 0.5 * sign_N, plain_N)  # type: ignore[arg-type]
    assert gradient_N.tolist() == pytest.approx(wanted_N.tolist(), rel=1e-6)


def test_the_draw_depends_on_seed_and_update(tmp_path: Path) -> None:
    samples = make_samples()
    batch = Batch(samples)
    current_N = torch.randn(batch.response_tokens, generator=torch.Generator().manual_seed(0)) - 3

    def chosen(update: int, seed: int = 0) -> list[bool]:
        cfg = settings(tmp_path, *CHOICE["clip_cov-drawn"], f"trainer.seed={seed}")
        return choose_tokens(cfg, batch, current_N, update).tolist()

    assert chosen(3) == chosen(3)
    assert chosen(3) != chosen(4)
    assert chosen(3) != chosen(3, seed=1)


def test_tokens_that_the_ratio_clips_are_not_drawn(tmp_path: Path) -> None:
    """Ratios are to the old log-probs; with stale rollouts and no correction weight, to the sampler's."""
    batch = Batch([Sample([3], [4, 5], [-1.0, -3.0], 1.0), Sample([3], [6, 7], [-9.0, -9.0], -1.0)])
    current_N = torch.tensor([-1.0, -1.0, -9.0, -9.0])
    settings_of_all = ["control.kind=clip_cov", "control.cov_share=1", "control.cov_low=1", "control.cov_high=100"]
    fresh, stale = (settings(tmp_path, *settings_of_all, f"rollout.max_staleness={n}") for n in (0, 1))
    assert choose_tokens(fresh, batch, current_N, 0).tolist() == [True, True, True, True]
    assert choose_tokens(stale, batch, current_N, 0).tolist() == [True, False, True, True]
    old_N = torch.tensor([-2.0, -1.0, -9.0, -8.0])
    assert choose_tokens(fresh, dataclasses.replace(batch, old_log_probs_N=old_N), current_N, 0).tolist() == [False, True, True, False]
