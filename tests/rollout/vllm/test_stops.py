"""A response ends at the same tokens on both engines, though config.json, generation_config.json and tokenizer say three things."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from megatron_entropic.config import RolloutConfig
from megatron_entropic.rollout.local_engine import LocalEngine
from megatron_entropic.rollout.types import Prompt, Rollout
from tests.rollout.vllm.vllm_world import EOS, TEMPERATURE, fleet_of, write_model
from tests.tiny_models import edit_config

PROMPTS = [Prompt(index, "", (2 + index % 95, 3)) for index in range(32)]
STOPS = (20, 33, 50, 51, 52, 60, 61, 70)


def check(rollouts: Sequence[Rollout]) -> None:
    for rollout in rollouts:
        assert not set(rollout.response_ids[:-1]) & set(STOPS)
        assert (rollout.finish_reason == "stop") == (rollout.response_ids[-1] in STOPS)
    # What other files call an end is a token like others.
    assert any({EOS, 5} & set(rollout.response_ids[:-1]) for rollout in rollouts), "other files' ends are tokens"
    assert any(rollout.finish_reason == "stop" for rollout in rollouts)


@pytest.mark.slow
@pytest.mark.vllm
def test_both_engines_stop_at_the_same_tokens(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    edit_config(model, eos_token_id=5)
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": list(STOPS), "temperature": 0.2, "top_k": 3}))
    fleet = fleet_of(model, tmp_path / "logs", servers=1, max_new_tokens=32)
    try:
        fleet.launch()
        cfg = RolloutConfig(engine="local", temperature=TEMPERATURE, max_new_tokens=32)
        check(LocalEngine(cfg, model_dir=model, dtype="float32", seed=5).generate(PROMPTS, 8))
        fleet.start()
        check(fleet.generate(PROMPTS, 8))
    finally:
        fleet.close()
