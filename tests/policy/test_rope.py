"""Scaled rotary embeddings: Megatron-Core's logits are transformers', and so are vLLM's frequencies."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoint_tools.parity import compare_logits
from megatron_entropic.checkpoint_files.kind import locate
from tests import tiny_models
from tests.run_ranks import run_ranks

YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}
SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
    "yarn": YARN,
    "yarn-bounds": {**YARN, "beta_fast": 16.0, "beta_slow": 2, "truncate": False},
    "yarn-attention-factor": {**YARN, "attention_factor": 0.7},
    "yarn-mscale": {**YARN, "mscale": 0.707, "mscale_all_dim": 1.0},
    "yarn-context-unsaid": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0},
}
PROMPTS = [" ".join(f"t{random.Random(seed).randrange(99)}" for _ in range(length)) for seed, length in enumerate((3, 400))]


def saved(folder: Path, scaling: dict[str, Any]) -> Path:
    tiny_models.save("qwen3", folder)
    tiny_models.edit_config(folder, rope_parameters=scaling)
    return folder


def differences(folders: dict[str, Path]) -> dict[str, float]:
    """The largest relative difference of any logit, by name."""
    return {name: compare_logits(locate(path), locate(path), PROMPTS, 1e-5).largest for name, path in folders.items()}


@pytest.mark.slow
@pytest.mark.distributed
def test_logits_equal_transformers(tmp_path: Path) -> None:
    folders = {name: saved(tmp_path / name, scaling) for name, scaling in SCALINGS.items()}
    (found,) = run_ranks(differences, 1, folders)
    assert {name: difference for name, difference in found.items() if difference > 1e-5} == {}


_VLLM = """
import json, sys, torch
from transformers import AutoConfig
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.rotary_embedding import get_rope
from vllm.transformers_utils.config import get_config
found = {}
for folder in sys.argv[1:]:
    config = get_config(folder, trust_remote_code=False)
    with set_current_vllm_config(VllmConfig()):
        theirs = get_rope(config.head_dim, max_position=512, rope_parameters=config.rope_parameters, dtype=torch.float32)
    cos, sin = Qwen3RotaryEmbedding(AutoConfig.from_pretrained(folder))(torch.zeros(1), torch.arange(512)[None])
    half = cos.shape[-1] // 2
    expected = torch.cat((cos[0, :, :half], sin[0, :, :half]), -1)
    found[folder] = (theirs.cos_sin_cache[:512] - expected).abs().max().item()
print(json.dumps(found))
"""


@pytest.mark.slow
def test_vllm_rotates_as_transformers_does(tmp_path: Path) -> None:
    folders = [str(saved(tmp_path / name, scaling)) for name, scaling in SCALINGS.items()]
    done = subprocess.run([sys.executable, "-c", _VLLM, *folders], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert {folder: difference for folder, difference in found.items() if difference > 2e-4} == {}
    assert torch.tensor(list(found.values())).isfinite().all()
