"""Weights in and out of the policy as Hugging Face tensors, one at a time: nobody ever holds the model twice.

Both directions plan from the tables in hf/mapping.py: every rank knows every tensor's name, shape and owner beforehand, so
no metadata travels.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megatron_entropic.hf.files import HFReader
from megatron_entropic.hf.headers import CheckpointError
from megatron_entropic.hf.mapping import merge, shard
from megatron_entropic.hf.tables import Layout, Row, canonical_name, checkpoint_rows, hf_shapes, model_rows
from megatron_entropic.policy.model import PolicyModel
from megatron_entropic.policy.parallel import Parallel

_LAYER_PREFIX = "decoder.layers."


def load_hf_weights(model: PolicyModel, hf_dir: Path, parallel: Parallel) -> None:
    """Fills this rank's parameters from a Hugging Face directory, reading only the tensors of its own layers.

    Values are converted to the parameters' dtype; padding rows of the vocabulary become zeros. No collective. Raises
    CheckpointError when a file or tensor is missing or has another shape than the model was built for.
    """
    rows, shapes = model_rows(model.arch), hf_shapes(model.arch)
    with HFReader(hf_dir) as reader, torch.no_grad():
        for name, parameter in _parameters(model).items():
            row = rows[name]
            for hf_name in row.hf:
                if reader.shape(hf_name) != shapes[hf_name]:
                    raise CheckpointError(
                        f"{reader.file(hf_name)}: tensor {hf_name} has shape {list(reader.shape(hf_name))}, "
                        f"the model was built for {list(shapes[hf_name])}"
                    )
            tensors = [reader.read(hf_name) for hf_name in row.hf]
            parameter.copy_(shard(row.layout, tensors, model.arch, parallel.tp_rank, parallel.tp_size, model.vocab_size))


def hf_weights(model: PolicyModel, parallel: Parallel, dtype: torch.dtype | None = None) -> Iterator[tuple[str, Tensor]]:
    """Yields every Hugging Face tensor by name, in checkpoint order: whole on global rank 0, empty on the others.

    Collective: all ranks must iterate to the end together. One parameter at a time is gathered over its tensor ranks and
    sent to rank 0; data-parallel replicas other than the first send nothing. Tensors are on the model's device, in `dtype`
    or else the parameters' own, and may share memory with the parameters: copy what must outlive the next update.
    """
    dtype = dtype or model.config.params_dtype
    parameters = _parameters(model)
    layers_per_stage = model.config.num_layers // parallel.pp_size
    shapes = hf_shapes(model.arch)
    for row in checkpoint_rows(model.arch):
        stage = _stage(row, layers_per_stage, parallel.pp_size)
        whole = _collect(_Move(row, stage, dtype), parameters, model, parallel, shapes)
        for i, name in enumerate(row.hf):
            yield name, whole[i] if whole else torch.empty(0, dtype=dtype, device=parallel.device)


@dataclass(frozen=True)
class _Move:
    """One parameter on its way to rank 0: which, from which pipeline stage, in which dtype."""

    row: Row
    stage: int
    dtype: torch.dtype


def _stage(row: Row, layers_per_stage: int, stages: int) -> int:
    if row.megatron.startswith(_LAYER_PREFIX):
        return int(row.megatron.removeprefix(_LAYER_PREFIX).split(".")[0]) // layers_per_stage
    return 0 if row.megatron.startswith("embedding.") else stages - 1


def _collect(
    move: _Move, parameters: dict[str, nn.Parameter], model: PolicyModel, parallel: Parallel, shapes: dict[str, tuple[int, ...]]
) -> tuple[Tensor, ...]:
    """Gathers one parameter's shards on the first tensor rank of its stage and brings the merged tensors to global rank 0.

    Returns the row's Hugging Face tensors there and nothing elsewhere.
    """
    if parallel.dp_rank > 0:
        return ()
    whole: tuple[Tensor, ...] = ()
    if parallel.pp_rank == move.stage:
        shards = _gather(move, parameters[move.row.megatron].detach().to(move.dtype), parallel)
        whole = merge(move.row.layout, shards, model.arch) if shards else ()
    if move.stage == 0 or parallel.tp_rank > 0:
        return whole if parallel.rank == 0 else ()
    # The (tp 0, dp 0) members of all stages form one pipeline group, which global rank 0 leads.
    if parallel.pp_rank == move.stage:
        for tensor in whole:
            dist.send(tensor.contiguous(), dst=0, group=parallel.pp_group)
    elif parallel.rank == 0:
        whole = tuple(torch.empty(shapes[name], dtype=move.dtype, device=parallel.device) for name in move.row.hf)
        source = dist.get_global_rank(parallel.pp_group, move.stage)
        for tensor in whole:
            dist.recv(tensor, src=source, group=parallel.pp_group)
        return whole
    return ()


def _gather(move: _Move, own: Tensor, parallel: Parallel) -> list[Tensor]:
    """All tensor ranks' shards in rank order on tensor rank 0, nothing on the others."""
    if parallel.tp_size == 1 or move.row.layout is Layout.REPLICATED:
        return [own] if parallel.tp_rank == 0 else []
    shards = [torch.empty_like(own) for _ in range(parallel.tp_size)] if parallel.tp_rank == 0 else None
    dist.gather(own.contiguous(), shards, dst=dist.get_global_rank(parallel.tp_group, 0), group=parallel.tp_group)
    return shards or []


def _parameters(model: PolicyModel) -> dict[str, nn.Parameter]:
    """This rank's parameters by the tables' names, which count layers globally."""
    named: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        if name.startswith(_LAYER_PREFIX):
            local, rest = name.removeprefix(_LAYER_PREFIX).split(".", 1)
            layer = model.decoder.layers[int(local)].layer_number - 1
            name = f"{_LAYER_PREFIX}{layer}.{rest}"
        named[canonical_name(name)] = parameter
    return named
