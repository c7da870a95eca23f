"""What Transformer Engine's layers are asked to do, and the reasons for which they cannot be."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from megatron_entropic import platform
from megatron_entropic.config import BatchConfig, Config, ModelConfig, ParallelConfig
from megatron_entropic.hf.architectures import Architecture
from megatron_entropic.policy import transformer_engine
from megatron_entropic.policy.model import transformer_config
from megatron_entropic.policy.transformer_engine import (
    RECIPES,
    feature_problems,
    feature_settings,
    fuse_gradient_accumulation,
    position_multiple,
    uses_transformer_engine,
)
from tests import tiny_models

H100, A100 = (9, 0), (8, 0)


@pytest.fixture
def arch(tmp_path: Path) -> Architecture:
    """Sizes 32, 48 and 64: multiples of 16."""
    tiny_models.save("qwen3", tmp_path)
    return Architecture.from_hf(tmp_path)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets what is there: the package, and a GPU of a compute capability."""

    def make(capability: tuple[int, int] | None, *, installed: bool = True) -> None:
        monkeypatch.setattr(platform, "accelerated", lambda: capability is not None)
        monkeypatch.setattr(platform, "compute_capability", lambda: capability)
        monkeypatch.setattr(transformer_engine, "_installed", lambda: installed)

    return make


def settings(fp8: str = "none", **model: Any) -> Config:
    return Config(model=ModelConfig(dtype="bfloat16", fp8=fp8, **model))  # type: ignore[arg-type]


def test_auto_takes_it_where_it_is_installed_and_a_gpu_is_there(machine: Any) -> None:
    for capability, installed, expected in ((H100, True, True), (H100, False, False), (None, True, False)):
        machine(capability, installed=installed)
        assert uses_transformer_engine(ModelConfig()) is expected
        assert uses_transformer_engine(ModelConfig(layer_spec="transformer_engine"))
        assert not uses_transformer_engine(ModelConfig(layer_spec="local"))


def test_layers_that_are_not_installed_are_refused(arch: Architecture, machine: Any) -> None:
    machine(H100, installed=False)
    with pytest.raises(ValueError, match=r"model\.layer_spec=transformer_engine, but the package cannot be imported"):
        transformer_config(arch, settings(layer_spec="transformer_engine"))


@pytest.mark.parametrize("recipe", RECIPES)
def test_fp8_is_handed_to_megatron(arch: Architecture, machine: Any, recipe: str) -> None:
    machine((10, 0))
    sizes = {name: 128 * getattr(arch, name) for name in ("hidden_size", "ffn_hidden_size", "head_dim")}
    assert feature_problems(replace(arch, **sizes), settings(recipe)) == []
    assert feature_settings(settings(recipe)) == {"fp8": RECIPES[recipe].format, "fp8_recipe": recipe}
    assert feature_settings(settings()) == {}


@pytest.mark.parametrize(
    ("capability", "installed", "cfg", "problem"),
    [
        (H100, False, settings("tensorwise"), "needs Transformer Engine's layers, and model.layer_spec=auto takes others here"),
        (H100, True, settings("tensorwise", layer_spec="local"), "model.layer_spec=local takes others here"),
        (None, True, settings("tensorwise"), r"needs a GPU of compute capability 8\.9 \(Ada, Hopper\); there is no GPU"),
        (A100, True, settings("tensorwise"), r"needs a GPU of compute capability 8\.9 \(Ada, Hopper\); this one has 8\.0"),
        (H100, True, settings("mxfp8"), r"compute capability 10\.0 \(Blackwell\); this one has 9\.0"),
        (H100, True, settings("blockwise"), "needs sizes that are multiples of 128; the hidden size is 32"),
        (H100, True, replace(settings("tensorwise"), parallel=ParallelConfig(tensor=2)), "inner size of MLPs or experts is 24"),
    ],
)
def test_fp8_is_refused_with_the_reason(
    arch: Architecture, machine: Any, capability: tuple[int, int] | None, installed: bool, cfg: Config, problem: str
) -> None:
    machine(capability, installed=installed)
    with pytest.raises(ValueError, match=problem):
        transformer_config(arch, cfg)


def test_fp8_is_refused_in_float32(arch: Architecture, machine: Any) -> None:
    machine(H100)
    assert feature_problems(arch, settings("tensorwise")) == []
    assert "model.fp8=tensorwise needs model.dtype=bfloat16, not float32" in feature_problems(
        arch, Config(model=ModelConfig(fp8="tensorwise", dtype="float32"))
    )


def overlapping(**changes: Any) -> Config:
    layout = {"tensor": 2, "sequence": True, "tensor_overlap": True} | changes
    return Config(parallel=ParallelConfig(**layout), batch=BatchConfig(max_tokens_per_micro_batch=4096))


def test_tensor_overlap_is_refused_with_the_reason(arch: Architecture, machine: Any) -> None:
    machine(H100)
    assert feature_problems(arch, overlapping()) == []
    assert feature_settings(overlapping()) == {"tp_comm_overlap": True}
    assert "needs parallel.sequence=true" in feature_problems(arch, overlapping(sequence=False))[0]
    odd = replace(overlapping(), batch=BatchConfig(max_tokens_per_micro_batch=4095))
    assert "to be a multiple of 2, for every micro-batch has that size" in feature_problems(arch, odd)[0]
    machine(None)
    assert "needs Transformer Engine's layers (model.layer_spec) and a GPU" in feature_problems(arch, overlapping())[0]


def test_micro_batches_have_the_sizes_that_are_asked_for() -> None:
    assert position_multiple(Config()) == 1
    assert position_multiple(Config(parallel=ParallelConfig(tensor=4, sequence=True))) == 4
    assert position_multiple(replace(settings("mxfp8"), parallel=ParallelConfig(tensor=2, sequence=True))) == 64
    assert position_multiple(overlapping()) == 4096


def test_gradient_accumulation_is_fused_in_layers_that_can() -> None:
    layer = nn.Linear(2, 2)
    layer.fuse_wgrad_accumulation = False  # type: ignore[assignment]
    model = nn.Sequential(layer, nn.Linear(2, 2))
    fuse_gradient_accumulation(model)
    assert layer.fuse_wgrad_accumulation
    assert not hasattr(model[1], "fuse_wgrad_accumulation")
