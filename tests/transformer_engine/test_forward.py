"""Transformer Engine's layers compute what the local ones do, and their weights come and go under their Hugging Face names."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from megatron_entropic.config import Config, ModelConfig, ParallelConfig
from megatron_entropic.distributed.parallel import Parallel
from megatron_entropic.hf.architectures import FAMILIES, Architecture
from megatron_entropic.policy.batching import Batch, Sample, build_micro_batch
from megatron_entropic.policy.engine import _packed
from megatron_entropic.policy.model import PolicyModel, build_model
from megatron_entropic.policy.weights import hf_weights, load_hf_weights, named_parameters
from megatron_entropic.rollout.weight_sync.checksum import weights_checksum
from tests import tiny_models
from tests.transformer_engine.running import with_transformer_engine

pytestmark = pytest.mark.slow
MARKS = ("tensor_model_parallel", "partition_dim", "sequence_parallel", "allreduce")
"""What Megatron-Core's gradient reduction and norm ask of a parameter."""


@dataclass
class Findings:
    """One model's two implementations, compared on one rank."""

    hidden: float = 0.0
    """Largest difference of a hidden state, and of a gradient below, each relative to the largest value."""
    gradient: float = 0.0
    experts: str = ""
    layers: str = ""
    marks: list[str] = field(default_factory=list)
    """Parameters that are marked otherwise."""
    names: list[str] = field(default_factory=list)
    """Of the Hugging Face tensors on rank 0, in order."""
    changed: list[str] = field(default_factory=list)
    """Hugging Face tensors that came back as others."""
    checksums: tuple[str, str] = ("", "")


def compare(parallel: Parallel, root: Path, kinds: tuple[str, ...], layout: ParallelConfig) -> dict[str, Findings]:
    return {kind: compare_one(parallel, root / kind, layout) for kind in kinds}


def compare_one(parallel: Parallel, hf_dir: Path, layout: ParallelConfig) -> Findings:
    cfg = Config(model=ModelConfig(hf_path=hf_dir, layer_spec="local", dtype="float32"), parallel=layout)
    arch = Architecture.from_hf(hf_dir)
    local = build_model(arch, cfg, parallel)
    engine = build_model(arch, replace(cfg, model=replace(cfg.model, layer_spec="transformer_engine")), parallel)
    for model in (local, engine):
        load_hf_weights(model, hf_dir, parallel)
    found = Findings()
    first = engine.decoder.layers[0]
    found.layers = type(first.self_attention.linear_qkv).__name__
    found.experts = type(getattr(first.mlp, "experts", None)).__name__
    found.hidden = difference(hidden_of(local, layout), hidden_of(engine, layout))
    ours, theirs = named_parameters(engine, parallel), named_parameters(local, parallel)
    assert ours.keys() == theirs.keys()
    for name, parameter in ours.items():
        if parameter.grad is not None:
            found.gradient = max(found.gradient, difference(theirs[name].grad, parameter.grad))
        if marks(parameter) != marks(theirs[name]):
            found.marks.append(f"{name}: {marks(parameter)}, local {marks(theirs[name])}")
    round_trip(engine, local, hf_dir, parallel, found)
    return found


def round_trip(engine: PolicyModel, local: PolicyModel, hf_dir: Path, parallel: Parallel, found: Findings) -> None:
    """Every tensor as a checkpoint has it, and as weight synchronisation sends it."""
    streams = [[(name, tensor.clone()) for name, tensor in hf_weights(model, parallel)] for model in (engine, local)]
    if parallel.rank == 0:
        theirs = load_file(hf_dir / "model.safetensors")
        found.names = [name for name, _ in streams[0]]
        assert set(found.names) == theirs.keys()
        found.changed = [name for name, tensor in streams[0] if not torch.equal(tensor, theirs[name])]
        found.checksums = (weights_checksum(streams[0]), weights_checksum(streams[1]))


def hidden_of(model: PolicyModel, layout: ParallelConfig) -> Tensor:
    """[T, 1, H] of two packed sequences; leaves the gradients of the sum of their squares."""
    samples = [Sample([1, 2, 3], [4, 5], [-1.0, -1.0], 1.0), Sample([1, 2], [4, 5, 6], [-1.0] * 3, -1.0)]
    micro_batch = build_micro_batch(Batch(samples), [0, 1], device=torch.device("cpu"), pad_multiple=layout.tensor)
    hidden = model(micro_batch.tokens_1T, micro_batch.positions_1T, None, packed_seq_params=_packed(micro_batch))
    hidden.square().sum().backward()
    return hidden.detach()


def difference(expected: Tensor | None, found: Tensor) -> float:
    """The largest one, relative to the largest value; an expert without tokens has a gradient of zeros."""
    assert expected is not None
    scale = float(expected.abs().max()) or 1.0
    return float((expected - found).abs().max()) / scale


def marks(parameter: torch.nn.Parameter) -> dict[str, object]:
    """Absent ones count as Megatron-Core counts them."""
    absent = {"tensor_model_parallel": False, "partition_dim": -1, "sequence_parallel": False, "allreduce": True}
    return {name: getattr(parameter, name, absent[name]) for name in MARKS}


def check(found: Findings, *, moe: bool) -> None:
    assert found.layers == "TELayerNormColumnParallelLinear"
    assert found.experts == ("TEGroupedMLP" if moe else "NoneType")
    assert found.hidden <= 1e-6
    assert found.gradient <= 1e-5
    assert not found.changed


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for kind in tiny_models.ARCHITECTURES:
        tiny_models.save(kind, root / kind)
    return root


def test_every_family_computes_the_same_and_keeps_its_weights(models: Path) -> None:
    assert {Architecture.from_hf(models / kind).architecture for kind in tiny_models.ARCHITECTURES} == FAMILIES.keys()
    (results,) = with_transformer_engine(compare, models, tiny_models.ARCHITECTURES, ParallelConfig())
    for kind, found in results.items():
        check(found, moe=kind in tiny_models.MOE)
        assert found.marks == [], kind
        assert found.names, kind
        assert found.checksums[0] == found.checksums[1], kind


@pytest.mark.distributed
@pytest.mark.parametrize(
    "layout",
    [ParallelConfig(data=2, expert=2), ParallelConfig(tensor=2, sequence=True, expert=2), ParallelConfig(tensor=2, sequence=True)],
    ids=["ep2", "ep2-tp2", "tp2"],
)
def test_grouped_experts_are_found_on_their_ranks(models: Path, layout: ParallelConfig) -> None:
    results = with_transformer_engine(compare, models, tiny_models.MOE, layout, layout=layout)
    for rank, result in enumerate(results):
        for found in result.values():
            check(found, moe=True)
            assert bool(found.names) == (rank == 0)
            assert found.marks == []
