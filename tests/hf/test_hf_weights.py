"""Weight files as other programs leave them: what says nothing new is read, what says two things is one clear line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from checkpoint_tools.verification import compare
from megatron_entropic.checkpoint_files.kind import locate
from megatron_entropic.config import Config, ModelConfig, ParallelConfig
from megatron_entropic.distributed.parallel import initialize_parallel, shutdown
from megatron_entropic.hf.architectures import Architecture
from megatron_entropic.hf.check import check_hf_dir, dtype_problems
from megatron_entropic.hf.files import HFReader
from megatron_entropic.hf.headers import CheckpointError
from megatron_entropic.policy.model import build_model
from megatron_entropic.policy.weights import load_hf_weights
from tests import tiny_models
from tests.conversion.conversions import imported
from tests.run_ranks import RankFailedError, run_ranks

Tensors = dict[str, torch.Tensor]


def saved(kind: str, folder: Path, change: Callable[[Tensors], object]) -> Path:
    """A model directory whose tensors were changed."""
    tiny_models.save(kind, folder)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


def problems(hf_dir: Path) -> list[str]:
    """The lines of what the check refuses, without the heading."""
    try:
        check_hf_dir(hf_dir, Architecture.from_hf(hf_dir))
    except CheckpointError as error:
        return str(error).splitlines()[1:]
    return []


def with_old_buffers(tensors: Tensors) -> None:
    for layer in range(4):
        tensors[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(4, dtype=torch.bfloat16)


def with_redundant_head(tensors: Tensors) -> None:
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()


@pytest.mark.parametrize(("kind", "change"), [("llama", with_old_buffers), ("qwen2_tied", with_redundant_head)])
def test_what_says_nothing_new_is_read_as_transformers_reads_it(tmp_path: Path, kind: str, change: Callable[[Tensors], object]) -> None:
    hf_dir, plain = saved(kind, tmp_path / "model", change), saved(kind, tmp_path / "plain", lambda tensors: None)
    assert problems(hf_dir) == []
    assert list(dtype_problems(hf_dir)) == []
    with HFReader(hf_dir) as reader, HFReader(plain) as expected:
        assert set(reader.names()) == set(expected.names())
    assert compare(locate(imported(hf_dir, tmp_path / "imported")), locate(hf_dir)).equal
    theirs = AutoModelForCausalLM.from_pretrained(hf_dir)
    assert all(torch.equal(a, b) for a, b in zip(theirs.parameters(), tiny_models.build(kind).parameters(), strict=True))


def test_a_head_that_is_not_the_embedding_is_no_tied_one(tmp_path: Path) -> None:
    def one_bit_off(tensors: Tensors) -> None:
        with_redundant_head(tensors)
        tensors["lm_head.weight"][-1, -1] *= 1.0000001

    (line,) = problems(saved("qwen2_tied", tmp_path / "bit", one_bit_off))
    assert line.endswith("tensor lm_head.weight is not model.embed_tokens.weight although config.json says tie_word_embeddings=true")
    other_type = saved("qwen2_tied", tmp_path / "type", lambda tensors: tensors.update({"lm_head.weight": torch.zeros(99, 32).half()}))
    assert len(problems(other_type)) == 1


def test_a_single_file_beside_an_index_is_one_line(tmp_path: Path) -> None:
    """Both whole, and as save_pretrained itself leaves it: the shards gone, their index there."""
    one = "model-00001-of-00001.safetensors"
    both = saved("qwen3", tmp_path / "both", lambda tensors: save_file(tensors, tmp_path / one))
    (tmp_path / one).rename(both / one)
    index = {"metadata": {}, "weight_map": dict.fromkeys(load_file(both / one), one)}
    (both / "model.safetensors.index.json").write_text(json.dumps(index))
    stale = saved("qwen3", tmp_path / "stale", lambda tensors: None)
    model = AutoModelForCausalLM.from_pretrained(stale)
    model.save_pretrained(stale, max_shard_size="50KB")
    model.save_pretrained(stale)
    for hf_dir, missing in ((both, ""), (stale, r", \d+ of them missing")):
        (line,) = problems(hf_dir)
        assert line.startswith(f"{hf_dir}: model.safetensors and model.safetensors.index.json (")
        with pytest.raises(CheckpointError, match=rf"other file\(s\){missing}\) are two models: .*; delete the one that is left"):
            HFReader(hf_dir)
    (stale / "model.safetensors.index.json").unlink()
    assert problems(stale) == []


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "consolidated.safetensors"])
def test_a_foreign_file_is_one_line_and_its_types_do_not_count(tmp_path: Path, name: str) -> None:
    hf_dir = saved("qwen3", tmp_path / "model", lambda tensors: None)
    save_file({"lora_A": torch.zeros(2, 2, dtype=torch.float16)}, hf_dir / name)
    assert problems(hf_dir) == [f"{hf_dir / name}: not of this model's weights, but vLLM would load it with them; move it away"]
    assert list(dtype_problems(hf_dir)) == []


def with_nan(tensors: Tensors) -> None:
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")


def with_infinity(tensors: Tensors) -> None:
    tensors["model.layers.3.self_attn.k_proj.bias"][2] = float("-inf")


def with_a_double(tensors: Tensors) -> None:
    tensors["lm_head.weight"] = tensors["lm_head.weight"].double()
    tensors["lm_head.weight"][5, 5] = 1e40


def load(hf_dir: Path) -> None:
    parallel = initialize_parallel(ParallelConfig(), seed=1)
    arch = Architecture.from_hf(hf_dir)
    load_hf_weights(build_model(arch, Config(model=ModelConfig(dtype="float32")), parallel), hf_dir, parallel)
    shutdown()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_nan, r"model\.safetensors: 1 value\(s\) of tensor model\.layers\.1\.mlp\.up_proj\.weight are NaN or infinite"),
        (with_infinity, r"tensor model\.layers\.3\.self_attn\.k_proj\.bias are NaN or infinite"),
        (with_a_double, r"tensor\(s\) lm_head\.weight have values beyond 3\.4028e\+38, the largest float32; set model\.dtype"),
    ],
)
def test_a_model_with_values_that_are_not_finite_is_not_trained(
    tmp_path: Path, change: Callable[[Tensors], object], message: str
) -> None:
    hf_dir = saved("qwen2", tmp_path / "model", change)
    with pytest.raises(RankFailedError, match=message):
        run_ranks(load, 1, hf_dir)
