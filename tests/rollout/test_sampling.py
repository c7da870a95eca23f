"""Sampling that is not the run's own, by the local engine: its numbers, its nucleus, and that training's stay as they were."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_entropic.config import RolloutConfig
from megatron_entropic.rollout.local_engine import LocalEngine, _draw, _nucleus
from megatron_entropic.rollout.types import Prompt, Rollout, SamplingParameters
from tests.tiny_models import TINY_DECOMPOSE

PROMPTS = [Prompt(index, "", (22, 23, 24 + index, 32)) for index in range(4)]
OWN = SamplingParameters(temperature=0.7, top_p=0.8, max_new_tokens=6, seed=2**62 + 5)


@pytest.fixture(scope="module")
def engine() -> LocalEngine:
    return LocalEngine(RolloutConfig(engine="local", max_new_tokens=8), model_dir=TINY_DECOMPOSE, dtype="float32", seed=0, device="cpu")


def ids(rollouts: list[Rollout]) -> list[list[int]]:
    return [rollout.response_ids.tolist() for rollout in rollouts]


def test_sampling_of_its_own_leaves_the_runs_samples_as_they_were(engine: LocalEngine) -> None:
    before = engine.generate(PROMPTS, 3)
    engine.generate(PROMPTS, 5, sampling=OWN)
    engine.generate(PROMPTS, 1, sampling=SamplingParameters(0.0, 1.0, 20, 1))
    assert engine.generate(PROMPTS, 3) == before


def test_samples_depend_on_seed_prompt_and_sample_and_on_no_version(engine: LocalEngine) -> None:
    first = ids(engine.generate(PROMPTS, 3, sampling=OWN))
    engine._version += 1
    assert ids(engine.generate(PROMPTS, 3, sampling=OWN)) == first
    engine._version -= 1
    assert ids(engine.generate(PROMPTS[2:], 2, sampling=OWN)) == [first[6], first[7], first[9], first[10]]
    assert ids(engine.generate(PROMPTS, 3, sampling=SamplingParameters(0.7, 0.8, 6, 1))) != first
    assert all(len(each) <= 6 for each in first)


@given(st.lists(st.floats(-5, 5, width=32), min_size=2, max_size=12), st.floats(0.05, 0.99))
def test_the_nucleus_is_the_fewest_likeliest_tokens_that_hold_top_p(logits: list[float], top_p: float) -> None:
    log_pi_AV = torch.tensor([logits]).log_softmax(-1)
    kept = _nucleus(log_pi_AV, top_p)[0]
    inside = kept.isfinite()
    probability = log_pi_AV[0].double().exp()
    assert float(probability[inside].sum()) >= top_p - 1e-6
    assert float(probability[inside].sum() - probability[inside].min()) < top_p + 1e-6
    assert bool((probability[inside].min() >= probability[~inside]).all())
    assert float(kept.exp().sum()) == pytest.approx(1.0, abs=1e-5)


def test_draws_from_the_nucleus_have_its_probabilities() -> None:
    logits_AV = torch.tensor([[0.0, 1.0, 2.0, -1.0]]).repeat(4000, 1)
    uniform_A = torch.from_numpy(np.random.default_rng(0).random(4000))
    ids_A, log_probs_A = _draw(logits_AV, uniform_A, 1.0, 0.85)
    assert set(ids_A.tolist()) == {1, 2}
    fraction = (ids_A == 2).double().mean().item()
    expected = np.exp(2) / (np.exp(2) + np.exp(1))
    assert fraction == pytest.approx(expected, abs=0.03)
    assert log_probs_A[ids_A == 2][0].exp().item() == pytest.approx(expected, rel=1e-5)
