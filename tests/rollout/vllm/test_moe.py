"""MoE models on real vLLM servers: they serve the weights of an update, and the trainer's under expert parallelism."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import MixtralConfig, MixtralForCausalLM

from megatron_entropic.config import Config
from megatron_entropic.config.loading import load_config
from megatron_entropic.distributed.parallel import initialize_parallel
from megatron_entropic.observability.metrics import read_metrics
from megatron_entropic.rollout.types import Prompt
from megatron_entropic.rollout.weight_sync.checksum import weights_checksum
from megatron_entropic.trainer import train
from tests.rollout.vllm.served import weight_checksums
from tests.rollout.vllm.vllm_world import CHARACTERS, EOS, fleet_of, load, worst_log_prob_error, write_model
from tests.run_ranks import run_ranks
from tests.tiny_models import save_upcycled

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

PROMPTS = [Prompt(index, "", tuple(2 + (index * 7 + place * 3) % 95 for place in range(1 + index % 9))) for index in range(16)]


def write_mixtral(folder: Path) -> Path:
    """A random Mixtral whose experts' inner size is none of vLLM's block sizes, with the tokenizer of `write_model`."""
    write_model(folder)
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=len(CHARACTERS),
        hidden_size=64,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=512,
        num_local_experts=4,
        eos_token_id=EOS,
        bos_token_id=None,
        pad_token_id=0,
        initializer_range=0.2,
    )
    MixtralForCausalLM(config).save_pretrained(folder)
    return folder


def test_a_server_serves_the_experts_of_each_update(tmp_path: Path) -> None:
    model = load(write_mixtral(tmp_path / "model"))
    fleet = fleet_of(tmp_path / "model", tmp_path / "logs", servers=1)
    try:
        fleet.start()
        assert worst_log_prob_error(model, fleet.generate(PROMPTS, 4)) < 1e-4
        for version in (1, 2):
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.1 * torch.randn(parameter.shape))
            model.save_pretrained(tmp_path / "changed")
            weights = load_file(tmp_path / "changed" / "model.safetensors")
            fleet.sync_weights(iter(weights.items()), version)
            assert set(weight_checksums(fleet).values()) == {weights_checksum(weights.items())}
            assert worst_log_prob_error(model, fleet.generate(PROMPTS, 4)) < 1e-4
    finally:
        fleet.close()


def run_rank(cfg: Config) -> None:
    train(cfg, initialize_parallel(cfg.parallel, cfg.trainer.seed))


@pytest.mark.distributed
def test_moe_trains_on_vllm_rollouts_over_expert_parallel_ranks(tmp_path: Path) -> None:
    cfg = load_config(
        "quickstart",
        [
            f"model.hf_path={save_upcycled(tmp_path / 'model', norm_topk_prob=True)}",
            "parallel.tensor=1",
            "parallel.data=2",
            "parallel.expert=2",
            "batch.prompts_per_step=8",
            "optimizer.lr=1e-3",
            "rollout.servers=1",
            "trainer.steps=3",
            "trainer.tensorboard=false",
            f"run.dir={tmp_path / 'run'}",
        ],
    )
    run_ranks(run_rank, 2, cfg, timeout=400)
    metrics = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert len(metrics) == 3
    assert max(line["rollout/logprob_gap"] for line in metrics) <= 1e-3
    assert all(line["reward/mean"] > 0.3 for line in metrics)
    before, after = (load_file(tmp_path / folder / "model.safetensors") for folder in ("model", "run/hf"))
    assert before.keys() == after.keys()
    assert all(not torch.equal(before[name], after[name]) for name in before)
