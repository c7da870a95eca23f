"""What a run on a GPU asks of Transformer Engine's layers, as its own Python takes it; nothing is computed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from megatron.core.fp8_utils import get_fp8_context

from megatron_entropic.checkpoint.policy_state import PolicyCheckpointError, load_policy, sharded_state
from megatron_entropic.config import Config, ModelConfig, TrainerConfig
from megatron_entropic.distributed.parallel import Parallel
from megatron_entropic.hf.architectures import Architecture
from megatron_entropic.policy.engine import Policy
from megatron_entropic.policy.model import build_model
from tests import tiny_models
from tests.transformer_engine.running import with_transformer_engine
from tests.transformer_engine.test_checkpoint import fill, save

pytestmark = pytest.mark.slow


def fused_layers(parallel: Parallel, hf_dir: Path) -> dict[str, set[bool]]:
    """By kind of layer whether it adds up weight gradients itself; with the setting, and (key "off") without."""
    cfg = Config(model=ModelConfig(hf_path=hf_dir))
    arch = Architecture.from_hf(hf_dir)
    found: dict[str, set[bool]] = {}
    for layer in build_model(arch, cfg, parallel).modules():
        if hasattr(layer, "fuse_wgrad_accumulation"):
            found.setdefault(type(layer).__name__, set()).add(layer.fuse_wgrad_accumulation)
    off = build_model(arch, replace(cfg, model=replace(cfg.model, gradient_accumulation_fusion=False)), parallel)
    found["off"] = {layer.fuse_wgrad_accumulation for layer in off.modules() if hasattr(layer, "fuse_wgrad_accumulation")}
    return found


def test_weight_gradients_are_fused_by_default_without_apex(tmp_path: Path) -> None:
    tiny_models.save("qwen3_moe", tmp_path)
    (found,) = with_transformer_engine(fused_layers, tmp_path)
    assert found.pop("off") == {False}
    assert found == {
        "TELayerNormColumnParallelLinear": {True},
        "TERowParallelLinear": {True},
        "TEColumnParallelGroupedLinear": {True},
        "TERowParallelGroupedLinear": {True},
    }


def refused_without_determinism(parallel: Parallel, hf_dir: Path) -> str:
    """Transformer Engine's own guard, without and with our switch."""
    from megatron_entropic import platform

    cfg = Config(model=ModelConfig(hf_path=hf_dir), trainer=TrainerConfig(deterministic=True))
    arch = Architecture.from_hf(hf_dir)
    try:
        build_model(arch, cfg, parallel)
        message = "not refused"
    except RuntimeError as error:
        message = str(error)
    platform.make_deterministic()
    assert build_model(arch, cfg, parallel).config.deterministic_mode
    return message


def test_deterministic_runs_reach_its_attention(tmp_path: Path) -> None:
    tiny_models.save("qwen3", tmp_path)
    (message,) = with_transformer_engine(refused_without_determinism, tmp_path)
    assert "NVTE_ALLOW_NONDETERMINISTIC_ALGO is not 0" in message


def fp8_checkpoints(parallel: Parallel, hf_dir: Path, folder: Path) -> dict[str, Any]:
    """Of a policy in 8 bits: what its layers keep beside parameters, and how it loads a checkpoint of a policy in 16."""
    plain = Config(model=ModelConfig(hf_path=hf_dir, dtype="bfloat16"))
    first = Policy(plain, parallel)
    fill(first)
    without = save(first, folder / "without")
    policy = Policy(replace(plain, model=replace(plain.model, fp8="tensorwise")), parallel)
    load_policy(policy, without, 1)
    with get_fp8_context(policy.model.config):  # as the first forward pass does
        policy.model.decoder.layers[0].mlp.linear_fc2.init_fp8_metadata()
    states = {name: state for name, state in policy.model.state_dict().items() if "_extra_state" in name and state is not None}
    found: dict[str, Any] = {"states": {name: state.numel() for name, state in states.items()}, "keys": scaling_keys(policy)}
    policy.model.config.fp8_recipe = "delayed"
    found["keys of delayed scaling"] = scaling_keys(policy)
    try:
        load_policy(policy, without, 1)
    except PolicyCheckpointError as error:
        found["refused"] = str(error)
    return found


def scaling_keys(policy: Policy) -> list[str]:
    return [key for key in sharded_state(policy)["model"] if "_extra_state" in key]


def test_scaling_state_is_kept_and_required_where_it_says_something(tmp_path: Path) -> None:
    tiny_models.save("qwen3", tmp_path / "model")
    (found,) = with_transformer_engine(fp8_checkpoints, tmp_path / "model", tmp_path)
    assert set(found["states"].values()) == {0}
    assert not found["keys"]
    assert found["keys of delayed scaling"]
    assert "_extra_state" in found["refused"]
