"""A bfloat16 run: weights served and exported in bfloat16, config.json saying so, metrics finite."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megatron_entropic.observability.metrics import read_metrics
from tests.command_line import megatron_entropic


@pytest.mark.slow
@pytest.mark.distributed
def test_a_bfloat16_run_exports_what_its_config_says(tmp_path: Path) -> None:
    settings = ["model.dtype=bfloat16", "rollout.engine=local", "batch.prompts_per_step=16", "trainer.steps=3", "optimizer.lr=1e-3"]
    outcome = megatron_entropic("train", "quickstart", *settings, f"run.dir={tmp_path / 'run'}")
    assert outcome.code == 0, outcome.output
    metrics = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert all(math.isfinite(value) for line in metrics for value in line.values() if value is not None)
    assert {line["optimizer/skipped_updates"] for line in metrics} == {0}
    weights = load_file(tmp_path / "run" / "hf" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "run" / "hf" / "config.json").read_text())["dtype"] == "bfloat16"
