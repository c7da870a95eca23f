"""The model in bfloat16, and layouts that cannot hold an architecture."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from megatron_entropic.config import Config, ModelConfig, ParallelConfig
from megatron_entropic.distributed.parallel import initialize_parallel, shutdown
from megatron_entropic.hf.architectures import Architecture
from megatron_entropic.hf.files import HFReader
from megatron_entropic.hf.headers import CheckpointError
from megatron_entropic.policy.model import build_model, transformer_config
from megatron_entropic.policy.weights import hf_weights, load_hf_weights
from tests import tiny_models
from tests.run_ranks import RankFailedError, run_ranks


def bfloat16_round_trip(hf_dir: Path) -> None:
    parallel = initialize_parallel(ParallelConfig(), seed=0)
    model = build_model(Architecture.from_hf(hf_dir), Config(model=ModelConfig(dtype="bfloat16")), parallel)
    load_hf_weights(model, hf_dir, parallel)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    with HFReader(hf_dir) as reader:
        for dtype in (None, torch.float32):
            for name, tensor in hf_weights(model, parallel, dtype):
                assert tensor.dtype is (dtype or torch.bfloat16)
                assert torch.equal(tensor.float(), reader.read(name).bfloat16().float()), name
    shutdown()


def test_weights_are_converted_to_the_models_dtype_and_exported_in_any(tmp_path: Path) -> None:
    tiny_models.save("qwen3", tmp_path)
    run_ranks(bfloat16_round_trip, 1, tmp_path)


def load_from(built_for: Path, loaded_from: Path) -> None:
    parallel = initialize_parallel(ParallelConfig(), seed=0)
    model = build_model(Architecture.from_hf(built_for), Config(model=ModelConfig(dtype="float32")), parallel)
    load_hf_weights(model, loaded_from, parallel)


def test_weights_of_another_model_are_refused_by_name(tmp_path: Path) -> None:
    for kind in ("qwen2", "llama", "llama3_rope"):
        tiny_models.save(kind, tmp_path / kind)
    with pytest.raises(
        RankFailedError, match=rf"{CheckpointError.__name__}: .*llama: no tensor model\.layers\.0\.self_attn\.q_proj\.bias"
    ):
        run_ranks(load_from, 1, tmp_path / "qwen2", tmp_path / "llama")
    with pytest.raises(
        RankFailedError, match=r"llama3_rope/model\.safetensors: tensor .* has shape \[\d+, \d+\], the model was built for"
    ):
        run_ranks(load_from, 1, tmp_path / "llama", tmp_path / "llama3_rope")


@pytest.mark.parametrize(
    ("layout", "changes", "problem"),
    [
        (ParallelConfig(tensor=8), {}, "parallel.tensor=8 does not divide the model's num_attention_heads=4"),
        (ParallelConfig(tensor=2), {"ffn_hidden_size": 49}, "parallel.tensor=2 does not divide the model's intermediate_size=49"),
        (ParallelConfig(tensor=4), {"num_heads": 12, "num_kv_heads": 3}, "nor a multiple of the model's num_key_value_heads=3"),
        (ParallelConfig(pipeline=3), {}, "parallel.pipeline=3 does not divide the model's num_hidden_layers=4"),
    ],
)
def test_a_layout_that_cannot_hold_the_model_is_refused(
    tmp_path: Path, layout: ParallelConfig, changes: dict[str, int], problem: str
) -> None:
    tiny_models.save("llama", tmp_path)
    arch = replace(Architecture.from_hf(tmp_path), **changes)
    with pytest.raises(ValueError, match="parallel") as error:
        transformer_config(arch, Config(parallel=layout))
    assert problem in str(error.value)
