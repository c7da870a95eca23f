"""Response of the entropy of the same tokens to an update: against two whole passes, in every layout, and when there is none."""

import json
import math
import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from megatron_entropic.config import Config, ControlConfig
from megatron_entropic.config.loading import load_config
from megatron_entropic.control import Coefficients, Measurement, make_controller
from megatron_entropic.distributed.parallel import initialize_parallel
from megatron_entropic.policy.batching import Batch, Sample
from megatron_entropic.policy.engine import Policy
from megatron_entropic.policy.response import Response, response_samples
from megatron_entropic.trainer import update_policy
from tests.run_ranks import run_ranks
from tests.tiny_models import save_divisible

LAYOUTS = {
    "one": [],
    "tp2-sp": ["parallel.tensor=2", "parallel.sequence=true"],
    "pp2": ["parallel.pipeline=2"],
    "dp2": ["parallel.data=2"],
    "tp2-dp2": ["parallel.tensor=2", "parallel.data=2"],
}
MEASURED = {
    "entropy": [],
    "clamped": ["control.steer_by=clamped_entropy"],
    "raw": ["control.entropy_temperature=raw"],
    "clamped raw": ["control.steer_by=clamped_entropy", "control.entropy_temperature=raw"],
    "entropy beside AEnt": ["control.kind=entropic+aent"],
}


def settings(model: Path, *overrides: str) -> Config:
    base = ["parallel.tensor=1", "batch.max_tokens_per_micro_batch=48", "rollout.temperature=0.8", "optimizer.lr=1e-2"]
    return load_config("quickstart", [*base, "batch.prompts_per_step=12", f"model.hf_path={model}", *overrides])


def make_batch(seed: int = 0) -> Batch:
    rng = random.Random(seed)
    samples = []
    for _ in range(12):
        response = [rng.randrange(2, 99) for _ in range(rng.randint(1, 9))]
        samples.append(Sample([rng.randrange(2, 99)] * rng.randint(1, 5), response, [-4.0] * len(response), rng.gauss(0, 1)))
    return Batch(samples)


def update_between_passes(cfg: Config) -> tuple[Measurement, float, int]:
    """(measurement of an update, change of the entropy by it from a pass over the chosen samples before and after it, their tokens)."""
    policy = Policy(cfg, initialize_parallel(cfg.parallel, 0))
    batch = make_batch()
    chosen = Batch([batch.samples[index] for index in response_samples(cfg.control, len(batch.samples))])

    def entropy() -> float:
        measured = policy.prepare(replace(chosen, old_log_probs_N=None))
        value = measured.clamped_entropy if cfg.control.steer_by == "clamped_entropy" else measured.entropy
        assert value is not None
        return value

    before = entropy()
    stats = policy.update(batch, Coefficients(-0.5))
    return stats.measurement, entropy() - before, chosen.response_tokens


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("share", [1.0, 0.25])
@pytest.mark.parametrize("measured", MEASURED)
def test_the_response_is_the_difference_of_two_passes(tmp_path: Path, measured: str, share: float) -> None:
    cfg = settings(save_divisible(tmp_path / "model"), f"control.response_share={share}", *MEASURED[measured])
    (found,) = run_ranks(update_between_passes, 1, cfg)
    measurement, expected, tokens = found
    assert measurement.response == pytest.approx(expected, abs=1e-6, rel=0)
    assert abs(expected) > 1e-3, "nothing would be compared"
    assert measurement.response_tokens == tokens
    assert (measurement.version, measurement.executed) == (0, 1)
    assert tokens == make_batch().response_tokens if share == 1 else 0 < tokens < make_batch().response_tokens / 2


@pytest.mark.slow
@pytest.mark.distributed
def test_every_layout_measures_the_same_response(tmp_path: Path) -> None:
    model = save_divisible(tmp_path / "model")
    found = {}
    for name, layout in LAYOUTS.items():
        cfg = settings(model, "control.response_share=0.3", *layout)
        ranks = run_ranks(update_between_passes, cfg.parallel.world_size, cfg)
        assert len({measurement.response for measurement, _, _ in ranks}) == 1, "ranks differ"
        found[name] = ranks[0][0]
        assert found[name].response == pytest.approx(ranks[0][1], abs=1e-6, rel=0)
    for measurement in found.values():
        assert measurement.response == pytest.approx(found["one"].response, rel=1e-5, abs=1e-6)
        assert measurement.response_tokens == found["one"].response_tokens


@pytest.mark.slow
@pytest.mark.distributed
def test_an_update_that_moves_nothing_has_no_response(tmp_path: Path) -> None:
    cfg = settings(save_divisible(tmp_path / "model"), "optimizer.lr=1e-12", "control.response_share=0.5")
    (found,) = run_ranks(update_between_passes, 1, cfg)
    assert abs(found[0].response) < 1e-7
    assert found[0].response_tokens > 0


def updates_of(cfg: Config) -> list[tuple[bool, float, int, int]]:
    """(applied, response, its tokens, passes that the update took) of a good, a bad, an empty and a good update."""
    policy = Policy(cfg, initialize_parallel(cfg.parallel, 0))
    passes, run_passes = 0, policy._passes

    def counted(*args: object, **kwargs: object) -> object:
        nonlocal passes
        passes += 1
        return run_passes(*args, **kwargs)  # type: ignore[arg-type]

    policy._passes = counted  # type: ignore[assignment]
    good, bad = make_batch(), make_batch()
    bad.samples = [replace(sample, advantage=math.nan) for sample in bad.samples]  # type: ignore[type-var]
    found = []
    for batch in (good, bad, Batch([]), good):
        passes = 0
        stats = policy.update(batch, Coefficients())
        found.append((stats.applied, stats.measurement.response, stats.measurement.response_tokens, passes))
    return found


@pytest.mark.slow
@pytest.mark.distributed
def test_a_skipped_update_has_no_response(tmp_path: Path) -> None:
    cfg = settings(save_divisible(tmp_path / "model"), "parallel.data=2")
    for first, bad, empty, last in run_ranks(updates_of, 2, cfg):
        for applied, response, tokens, passes in (first, last):
            assert applied
            assert response != 0
            assert math.isfinite(response)
            assert tokens > 0
            assert passes == 2
        for applied, response, tokens, passes in (bad, empty):
            assert not applied
            assert math.isnan(response)
            assert tokens == 0
            assert passes == 1


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("off", ["control.response_share=0", "control.kind=none", "control.kind=aent"])
def test_where_nothing_is_steered_by_it_it_costs_nothing(tmp_path: Path, off: str) -> None:
    cfg = settings(save_divisible(tmp_path / "model"), off)
    (found,) = run_ranks(updates_of, 1, cfg)
    for _, response, tokens, passes in found:
        assert math.isnan(response)
        assert tokens == 0
        assert passes == 1


def told(cfg: Config) -> tuple[list[tuple[int, float]], list[float]]:
    """((updates executed, response) of every measurement that reaches the controller, response of every update) of three batches."""
    policy = Policy(cfg, initialize_parallel(cfg.parallel, 0))
    controller = make_controller(cfg)
    step, heard = controller.step, []

    def hear(measured: Measurement) -> None:
        heard.append((measured.executed, measured.response))
        step(measured)

    controller.step = hear  # type: ignore[method-assign]
    updates = [update for seed in range(3) for update in update_policy(cfg, policy, controller, make_batch(seed))]
    return heard, [update.measurement.response for update in updates]


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(
    "way", ["batch.mini_batches=1", "batch.mini_batches=2", "batch.mini_batches=3", "control.fresh_measurement=true"]
)
def test_every_response_reaches_the_controller_once(tmp_path: Path, way: str) -> None:
    cfg = settings(save_divisible(tmp_path / "model"), way)
    ((heard, responses),) = run_ranks(told, 1, cfg)
    assert len(set(responses)) == 3 * cfg.batch.mini_batches
    known = [(executed, response) for executed, response in heard if math.isfinite(response)]
    expected = list(enumerate(responses, start=1))
    # The last update's response comes with the measurement before the next batch's first update.
    assert known == (expected if way == "batch.mini_batches=1" else expected[:-1])


@pytest.mark.parametrize("count", [1, 2, 7, 8, 96, 4096])
@pytest.mark.parametrize("share", [0.001, 0.1, 0.2, 0.5, 0.77, 1.0])
def test_samples_are_spread_evenly(count: int, share: float) -> None:
    chosen = response_samples(ControlConfig(response_share=share), count)
    assert len(chosen) == max(1, round(share * count))
    assert chosen[0] >= 0
    assert chosen[-1] < count
    gaps = {after - before for before, after in pairwise(chosen)}
    assert all(gap >= 1 for gap in gaps)
    assert not gaps or max(gaps) - min(gaps) <= 1
    if share == 1:
        assert chosen == list(range(count))
    if share * 8 >= 1:
        assert len({index // 8 for index in chosen}) == -(-count // 8), "a prompt without a sample"


@pytest.mark.parametrize("response", [Response(-0.0123456789, 42), Response()])
def test_a_response_is_saved_to_the_last_bit(response: Response) -> None:
    back = Response.of_state(json.loads(json.dumps(response.state(), allow_nan=False)))
    assert back.tokens == response.tokens
    assert back.change == response.change or (math.isnan(back.change) and math.isnan(response.change))
    assert math.isnan(Response.of_state(None).change)
