"""Hugging Face -> distributed -> (training in any layout) -> Hugging Face: the same bytes."""

import hashlib
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file

from megatron_entropic.config import Config
from megatron_entropic.config.loading import load_config
from megatron_entropic.conversion.distributed_reader import DistributedReader
from megatron_entropic.conversion.exporting import ExportOptions, export_hf
from megatron_entropic.conversion.keys import is_optimizer
from megatron_entropic.distributed.parallel import initialize_parallel
from megatron_entropic.hf.architectures import Architecture
from megatron_entropic.hf.files import HFReader, write_hf
from megatron_entropic.hf.headers import CheckpointError
from megatron_entropic.hf.mapping import shard
from megatron_entropic.hf.tables import checkpoint_rows, hf_shapes
from megatron_entropic.trainer import train
from tests import tiny_models
from tests.conversion.conversions import contents, exported, imported
from tests.run_ranks import run_ranks


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model directory for every architecture."""
    root = tmp_path_factory.mktemp("models")
    for kind in tiny_models.ARCHITECTURES:
        tiny_models.save(kind, root / kind)
        tiny_models.edit_config(root / kind, eos_token_id=1)  # which the local engine wants to know
        shutil.copy(tiny_models.TINY_DECOMPOSE / "tokenizer.json", root / kind)
    return root


@pytest.mark.parametrize("layout", [(1, 1), (2, 1), (4, 1), (1, 2), (2, 4)], ids=str)
@pytest.mark.parametrize("kind", tiny_models.DENSE)
def test_there_and_back_is_the_same_directory(models: Path, kind: str, layout: tuple[int, int], tmp_path: Path) -> None:
    checkpoint = imported(models / kind, tmp_path / "imported", *layout)
    assert len(list((checkpoint / "policy").glob("__*_0.distcp"))) == layout[0] * layout[1]
    exported(checkpoint, tmp_path / "exported")
    assert contents(tmp_path / "exported") == contents(models / kind)


@pytest.mark.parametrize("kind", tiny_models.MOE)
@pytest.mark.parametrize("layout", [(1, 1, 2), (2, 2, 4), (1, 2, 4)], ids=str)
def test_experts_there_and_back(models: Path, kind: str, layout: tuple[int, int, int], tmp_path: Path) -> None:
    checkpoint = imported(models / kind, tmp_path / "imported", *layout)
    exported(checkpoint, tmp_path / "exported")
    assert contents(tmp_path / "exported") == contents(models / kind)


# Whatever layout a checkpoint was cut for, every layout trains from it. (A KV-head count of 2 and 4 experts allow all of these.)
MATRIX = {
    "tp2-to-one": ("qwen3", (2, 1, 1), []),
    "one-to-tp2-pp2": ("qwen2_tied", (1, 1, 1), ["parallel.tensor=2", "parallel.pipeline=2"]),
    "pp2-to-tp4": ("llama3_rope", (1, 2, 1), ["parallel.tensor=4", "parallel.sequence=true"]),
    "tp2-pp2-to-dp2": ("qwen2", (2, 2, 1), ["parallel.data=2"]),
    "tp4-to-pp4": ("mistral", (4, 1, 1), ["parallel.pipeline=4"]),
    "ep2-to-ep2-dp2": ("qwen3_moe", (1, 1, 2), ["parallel.expert=2", "parallel.data=2"]),
    "one-to-tp2-ep2": ("mixtral", (1, 1, 1), ["parallel.tensor=2", "parallel.expert=2", "parallel.sequence=true"]),
    "ep4-to-pp2-ep2": ("qwen3_moe", (1, 1, 4), ["parallel.pipeline=2", "parallel.expert=2", "parallel.data=2"]),
}


def _train(cfg: Config) -> None:
    train(cfg, initialize_parallel(cfg.parallel, cfg.trainer.seed))


def run(folder: Path, model: Path, *settings: str) -> Path:
    """A run of no steps: it reads the model and writes it again."""
    fixed = ["rollout.engine=local", "trainer.steps=0", "trainer.tensorboard=false", "parallel.tensor=1", "checkpoint.every=1"]
    cfg = load_config("quickstart", [*fixed, f"model.hf_path={model}", f"run.dir={folder}", *settings])
    run_ranks(_train, cfg.parallel.world_size, cfg)
    return folder


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("case", MATRIX)
def test_training_no_steps_from_an_imported_checkpoint_changes_nothing(models: Path, case: str, tmp_path: Path) -> None:
    kind, cut, settings = MATRIX[case]
    checkpoint = imported(models / kind, tmp_path / "imported", *cut)
    folder = run(tmp_path / "run", checkpoint, *settings)
    assert contents(folder / "hf") == contents(models / kind)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("kind", ["qwen2_tied", "llama", "mixtral"])
def test_an_imported_checkpoint_has_what_megatron_would_have_saved(models: Path, kind: str, tmp_path: Path) -> None:
    """Same keys, shapes, chunks and types of weights as a training checkpoint of the same layout."""
    settings = ["parallel.tensor=2", "parallel.sequence=true", "batch.prompts_per_step=1", "batch.samples_per_prompt=2"]
    folder = run(tmp_path / "run", models / kind, *settings, "trainer.steps=1", "rollout.max_new_tokens=2", "control.kind=none")
    with (
        DistributedReader(folder / "checkpoints" / "step-000001" / "policy") as saved,
        DistributedReader(imported(models / kind, tmp_path / "imported", 2) / "policy") as ours,
    ):
        weights = {key: tensor for key, tensor in saved.tensors.items() if not is_optimizer(key)}
        assert ours.tensors.keys() == weights.keys()
        for key, tensor in weights.items():
            assert (ours.tensors[key].shape, ours.tensors[key].dtype) == (tensor.shape, tensor.dtype)
            assert {(c.offsets, c.sizes) for c in ours.tensors[key].chunks} == {(c.offsets, c.sizes) for c in tensor.chunks}, key


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("kind", ["qwen3", "qwen3_moe"])
def test_a_bfloat16_run_exports_its_weights_and_its_masters(models: Path, kind: str, tmp_path: Path) -> None:
    model = models / kind
    layout = ["parallel.tensor=2", "parallel.sequence=true", "parallel.expert=2"] if "moe" in kind else ["parallel.pipeline=2"]
    small = [
        "batch.prompts_per_step=2",
        "batch.samples_per_prompt=2",
        "rollout.max_new_tokens=4",
        "control.kind=entropy_bonus",
        *layout,
    ]
    folder = run(tmp_path / "run", model, "model.dtype=bfloat16", "trainer.steps=1", *small, "optimizer.lr=1e-5")
    checkpoint = folder / "checkpoints" / "step-000001"
    plain = load_file(exported(checkpoint, tmp_path / "plain") / "model.safetensors")
    masters = load_file(exported(checkpoint, tmp_path / "masters", dtype="float32") / "model.safetensors")
    assert all(tensor.dtype is torch.bfloat16 for tensor in plain.values())
    assert all(torch.equal(masters[name].bfloat16(), tensor) for name, tensor in plain.items())
    assert any(not torch.equal(masters[name], tensor.float()) for name, tensor in plain.items()), "masters have more digits"
    assert contents(tmp_path / "plain")["model.safetensors"] == contents(folder / "hf")["model.safetensors"]


@pytest.mark.parametrize("kind", ["qwen3", "mixtral"])
@pytest.mark.parametrize("fused", [True, False])
def test_checkpoints_of_other_makers_are_read(models: Path, kind: str, fused: bool, tmp_path: Path) -> None:
    """Written by torch's own distributed checkpoints: a tensor for every layer, Transformer Engine's fused norms or plain ones."""
    arch = Architecture.from_hf(models / kind)
    tensors = {}
    with HFReader(models / kind) as reader:
        for row in checkpoint_rows(arch):
            name = row.megatron
            if fused:
                name = name.replace("input_layernorm.", "self_attention.linear_qkv.layer_norm_")
            whole = shard(row.layout, [reader.read(hf_name) for hf_name in row.hf], arch, 0, 1, arch.vocab_size + 5)
            if row.expert is not None:  # experts are stacked, as Transformer Engine's grouped layers are
                name = name.replace(f"local_experts.{row.expert}", "experts")
                tensors[name] = torch.cat([tensors[name], whole[None]]) if name in tensors else whole[None]
            else:
                tensors[name] = whole
    dcp.save(tensors, checkpoint_id=tmp_path / "checkpoint", no_dist=True)
    export_hf(tmp_path / "checkpoint", models / kind, tmp_path / "exported", ExportOptions())
    assert contents(tmp_path / "exported") == contents(models / kind)


def test_types_are_converted_as_asked_and_config_says_so(models: Path, tmp_path: Path) -> None:
    checkpoint = imported(models / "llama", tmp_path / "imported", 2, dtype="bfloat16")
    narrow = load_file(exported(checkpoint, tmp_path / "exported", dtype="float16") / "model.safetensors")
    for name, tensor in load_file(models / "llama" / "model.safetensors").items():
        assert torch.equal(narrow[name], tensor.bfloat16().half())
    assert '"float16"' in (tmp_path / "exported" / "config.json").read_text()


def test_shards_index_and_checksums_are_those_of_the_tools_users_have(models: Path, tmp_path: Path) -> None:
    checkpoint = imported(models / "qwen2", tmp_path / "imported")
    out = exported(checkpoint, tmp_path / "exported", max_shard_bytes=20_000)
    with HFReader(models / "qwen2") as reader:
        names = hf_shapes(Architecture.from_hf(models / "qwen2"))
        write_hf(tmp_path / "written", ((name, reader.read(name)) for name in names), models / "qwen2", max_shard_bytes=20_000)
    assert contents(out) == contents(tmp_path / "written")
    assert len(list(out.glob("*.safetensors"))) > 2
    checked = subprocess.run(["sha256sum", "--check", "SHA256SUMS"], cwd=out, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    assert hashlib.sha256((out / "model-00001-of-00008.safetensors").read_bytes()).hexdigest() in (out / "SHA256SUMS").read_text()


def test_a_mixture_of_types_needs_a_decision(models: Path, tmp_path: Path) -> None:
    hf_dir = tmp_path / "model"
    tiny_models.save("llama", hf_dir)
    weights: dict[str, Any] = load_file(hf_dir / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"].double()
    save_file(weights, hf_dir / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 tensor\(s\) are float64, among them model\.norm\.weight"):
        imported(hf_dir, tmp_path / "imported")
    imported(hf_dir, tmp_path / "imported", dtype="float32")
