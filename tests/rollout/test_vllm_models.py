"""Every kind of model on real servers: start, update, update again; log-probs are those of transformers each time."""

from pathlib import Path

import pytest
import torch

from megatron_entropic.rollout.buckets import weights_checksum
from megatron_entropic.rollout.types import Prompt
from tests.rollout.vllm_world import changed, fleet_of, load, worst_log_prob_error, write_model

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

PROMPTS = [Prompt(index, "", tuple(2 + (index * 7 + place * 3) % 95 for place in range(1 + index % 9))) for index in range(16)]


def test_the_output_layer_of_a_tied_model_follows_the_embedding(tmp_path: Path) -> None:
    model = load(write_model(tmp_path / "model", tie_word_embeddings=True))
    fleet = fleet_of(tmp_path / "model", tmp_path / "logs", servers=1)
    try:
        fleet.start()
        assert worst_log_prob_error(model, fleet.generate(PROMPTS, 4)) < 1e-4
        for version in (1, 2):
            weights = changed(model, version)
            assert "lm_head.weight" not in dict(weights)
            with torch.no_grad():
                for name, weight in weights:
                    model.get_parameter(name).copy_(weight)
            fleet.sync_weights(iter(weights), version)
            assert set(fleet.weight_checksums().values()) == {weights_checksum(weights)}
            assert worst_log_prob_error(model, fleet.generate(PROMPTS, 4)) < 1e-4
    finally:
        fleet.close()
