"""Every kind of model through a real server: started, updated by the policy, updated again, right each time."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_entropic.checkpoint_files.kind import model_folder
from megatron_entropic.config import Config
from megatron_entropic.config.loading import load_config
from megatron_entropic.control import Coefficients
from megatron_entropic.distributed.parallel import initialize_parallel
from megatron_entropic.hf.files import write_hf
from megatron_entropic.policy.batching import Batch, Sample
from megatron_entropic.policy.engine import Policy
from megatron_entropic.policy.update_stats import UpdateStats, gap_of
from megatron_entropic.rollout.logprob_gap import WARN
from megatron_entropic.rollout.types import Prompt, Rollout
from megatron_entropic.rollout.vllm.fleet import VLLMFleet, make_fleet
from megatron_entropic.rollout.vocabulary import NO_TOKEN
from megatron_entropic.rollout.weight_sync.checksum import weights_checksum
from tests.rollout.vllm.model_matrix import MATRIX, Served
from tests.rollout.vllm.served import weight_checksums
from tests.rollout.vllm.server_forks import forked_servers
from tests.rollout.vllm.vllm_world import CHARACTERS
from tests.run_ranks import run_ranks

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.distributed]

PROMPTS = [Prompt(index, "", tuple(2 + (index * 7 + place * 3) % 95 for place in range(1 + 5 * index))) for index in range(6)]
TIE = {"float32": 0.0, "bfloat16": 0.2}
"""How much less than the largest transformers' log-prob of a greedy token may be, nats."""


@pytest.fixture(scope="module", autouse=True)
def servers() -> Iterator[None]:
    with forked_servers():
        yield


@pytest.mark.parametrize("served", MATRIX, ids=str)
def test_a_server_follows_the_policy(served: Served, tmp_path: Path) -> None:
    settings = {
        "model.hf_path": served.write(tmp_path / "model"),
        "model.dtype": served.dtype,
        "rollout.tensor": served.tensor,
        "rollout.temperature": 0.7,
        "rollout.max_new_tokens": 6,
        "rollout.sync_timeout_s": 120,
        "parallel.tensor": 1,
        "rollout.servers": 1,
        "control.kind": "none",
        "optimizer.lr": 0.01,
        "run.dir": tmp_path / "run",
    }
    cfg = load_config("quickstart", [f"{name}={value}" for name, value in settings.items()])
    assert run_ranks(follow, 1, cfg, tmp_path / "exported", timeout=400) == [[1, 2]]


def follow(cfg: Config, exported: Path) -> list[int]:
    """Two updates of a server by a policy that learns in between; as one rank. The versions that it followed."""
    fleet = make_fleet(cfg)
    followed = []
    try:
        fleet.launch()
        policy = Policy(cfg, initialize_parallel(cfg.parallel, seed=0))
        fleet.start()
        for version in (1, 2):
            fleet.sync_weights(policy.weights(), version)
            assert set(weight_checksums(fleet).values()) == {weights_checksum(policy.weights())}
            check_greedy(cfg, fleet, policy, exported)
            rollouts = fleet.generate(PROMPTS, 4)
            assert any(NO_TOKEN in rollout.text for rollout in rollouts) == (policy.arch.vocab_size > len(CHARACTERS))
            stats = learn(policy, rollouts)
            largest, mean = gap_of([stats])
            print(f"version {version}: gap {mean:.2g} in the mean, {largest:.2g} at most", flush=True)
            assert stats.applied
            assert not WARN[cfg.model.dtype].exceeded(largest, mean)
            followed.append(version)
        return followed
    finally:
        fleet.close()


def learn(policy: Policy, rollouts: Sequence[Rollout]) -> UpdateStats:
    """An update that changes every weight, good or bad."""
    samples = [Sample(r.prompt_ids, r.response_ids, r.log_probs, (-1.0) ** place) for place, r in enumerate(rollouts)]
    return policy.update(Batch(samples), Coefficients())


@torch.no_grad()
def check_greedy(cfg: Config, fleet: VLLMFleet, policy: Policy, exported: Path) -> None:
    """The server's greedy tokens are those of transformers on the exported weights."""
    dtype = getattr(torch, cfg.model.dtype)
    write_hf(exported, policy.weights(), model_folder(cfg.model.hf_path).hf_dir, dtype=dtype, replace=True)
    model = AutoModelForCausalLM.from_pretrained(exported, dtype=dtype).eval()
    sampling, fleet.cfg = fleet.cfg, dataclasses.replace(fleet.cfg, temperature=0.0)
    for rollout in fleet.generate(PROMPTS, 1):
        ids = torch.tensor([[*rollout.prompt_ids, *rollout.response_ids]])
        log_probs_TV = model(ids).logits[0, len(rollout.prompt_ids) - 1 : -1].float().log_softmax(-1)
        chosen_T = log_probs_TV.gather(1, ids[0, len(rollout.prompt_ids) :, None])[:, 0]
        assert float((log_probs_TV.max(-1).values - chosen_T).max()) <= TIE[cfg.model.dtype]
    fleet.cfg = sampling
