"""Weights in and out of the policy as Hugging Face tensors, one at a time: nobody ever holds the model twice.

Both directions plan from the tables in hf/mapping.py: every rank knows every tensor's name, shape and owner beforehand, so
no metadata travels.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megatron_entropic.distributed.parallel import Parallel
from megatron_entropic.distributed.rank_zero import follow_rank_zero, from_rank_zero
from megatron_entropic.hf.files import HFReader
from megatron_entropic.hf.headers import CheckpointError
from megatron_entropic.hf.mapping import merge, shard
from megatron_entropic.hf.tables import Row, canonical_name, checkpoint_rows, hf_shapes, model_rows
from megatron_entropic.hf.values import count_not_finite, is_finite
from megatron_entropic.policy.experts import global_expert_name
from megatron_entropic.policy.model import PolicyModel

_LAYER_PREFIX = "decoder.layers."
PIECE_BYTES = 2**28
"""Of the stream of weights, so many bytes are collected at one time; a larger parameter is a piece of its own."""


def load_hf_weights(model: PolicyModel, hf_dir: Path, parallel: Parallel) -> None:
    """Fills this rank's parameters from a Hugging Face directory, reading only the tensors of its own layers.

    Values are converted to the parameters' dtype; padding rows of the vocabulary become zeros. No collective. Raises
    CheckpointError when a file or tensor is missing, has another shape than the model was built for, or values that are not finite.
    """
    rows, shapes = model_rows(model.arch), hf_shapes(model.arch)
    with HFReader(hf_dir) as reader, torch.no_grad():
        for name, parameter in named_parameters(model, parallel).items():
            row = rows[name]
            for hf_name in row.hf:
                if reader.shape(hf_name) != shapes[hf_name]:
                    raise CheckpointError(
                        f"{reader.file(hf_name)}: tensor {hf_name} has shape {list(reader.shape(hf_name))}, "
                        f"the model was built for {list(shapes[hf_name])}"
                    )
            tensors = [reader.read(hf_name) for hf_name in row.hf]
            tp_rank, tp_size = (parallel.tp_rank, parallel.tp_size) if row.split_over_tensor_ranks else (0, 1)
            parameter.copy_(shard(row.layout, tensors, model.arch, tp_rank, tp_size, model.vocab_size))
            if not is_finite(parameter):
                _refuse(row, tensors, reader, parameter.dtype)


def _refuse(row: Row, tensors: Sequence[Tensor], reader: HFReader, dtype: torch.dtype) -> NoReturn:
    """Says which tensor a parameter has NaN or infinity from."""
    for name, tensor in zip(row.hf, tensors, strict=True):
        if count := count_not_finite(tensor):
            raise CheckpointError(f"{reader.file(name)}: {count} value(s) of tensor {name} are NaN or infinite: a broken model")
    largest = f"{torch.finfo(dtype).max:.5g}, the largest {dtype}".replace("torch.", "")
    raise CheckpointError(f"{reader.file(row.hf[0])}: tensor(s) {', '.join(row.hf)} have values beyond {largest}; set model.dtype")


def hf_weights(model: PolicyModel, parallel: Parallel, dtype: torch.dtype | None = None) -> Iterator[tuple[str, Tensor]]:
    """Yields every Hugging Face tensor by name, in checkpoint order: whole on global rank 0, empty on the others.

    Collective: all ranks must iterate to the end together. Pieces of PIECE_BYTES are collected when rank 0 asks for them; while it
    is busy with one, no rank is in a collective. One parameter at a time is gathered over its tensor ranks, or sent
    by the rank that holds its expert, to the first rank of its pipeline stage, and from there to rank 0; replicas other than
    the first send nothing. Tensors are on the model's device, in `dtype` or else the parameters' own, and may share memory
    with the parameters: copy what must outlive the next update.
    """
    dtype = dtype or model.config.params_dtype
    parameters = named_parameters(model, parallel)
    layers_per_stage = model.config.num_layers // parallel.pp_size
    experts_per_rank = (model.arch.num_experts or 0) // parallel.ep_size
    shapes = hf_shapes(model.arch)
    for rows in _pieces(checkpoint_rows(model.arch), shapes, dtype):
        follow_rank_zero(parallel, "rank 0 to take more of the weights")
        collected: list[tuple[str, Tensor]] = []
        for row in rows:
            stage = _stage(row, layers_per_stage, parallel.pp_size)
            holder = 0 if row.expert is None else row.expert // experts_per_rank
            whole = _collect(_Move(row, stage, holder, dtype), parameters, model, parallel, shapes)
            nothing = torch.empty(0, dtype=dtype, device=parallel.device)
            collected += [(name, whole[i] if whole else nothing) for i, name in enumerate(row.hf)]
        while collected:
            yield collected.pop(0)


def weights_to_rank_zero(
    parallel: Parallel,
    stream: Iterator[tuple[str, Tensor]],
    consume: Callable[[Iterator[tuple[str, Tensor]]], object],
    *,
    doing: str,
) -> None:
    """Gives `stream`, of `hf_weights`, to `consume` on rank 0, which may take any time over it. Collective over the world.

    The stream is read to its end on every rank even when `consume` fails half-way. Raises its exception on rank 0, RankZeroError on
    the others; `doing` says in errors what they waited for.
    """

    def consume_all() -> None:
        try:
            consume(stream)
        finally:
            for _ in stream:
                pass

    if parallel.rank:
        for _ in stream:
            pass
    from_rank_zero(parallel, consume_all, doing=doing)


def _pieces(rows: Sequence[Row], shapes: dict[str, tuple[int, ...]], dtype: torch.dtype) -> Iterator[list[Row]]:
    """The rows in their order, cut where they exceed PIECE_BYTES; the same on every rank."""
    piece: list[Row] = []
    size = 0
    for row in rows:
        row_bytes = sum(math.prod(shapes[name]) for name in row.hf) * dtype.itemsize
        if piece and size + row_bytes > PIECE_BYTES:
            yield piece
            piece, size = [], 0
        piece.append(row)
        size += row_bytes
    if piece:
        yield piece


@dataclass(frozen=True)
class _Move:
    """One parameter on its way to rank 0: which, from where, in which dtype."""

    row: Row
    stage: int
    holder: int
    """The expert-parallel rank that has it, where it belongs to an expert."""
    dtype: torch.dtype


def _stage(row: Row, layers_per_stage: int, stages: int) -> int:
    if row.megatron.startswith(_LAYER_PREFIX):
        return int(row.megatron.removeprefix(_LAYER_PREFIX).split(".")[0]) // layers_per_stage
    return 0 if row.megatron.startswith("embedding.") else stages - 1


def _collect(
    move: _Move, parameters: dict[str, nn.Parameter], model: PolicyModel, parallel: Parallel, shapes: dict[str, tuple[int, ...]]
) -> tuple[Tensor, ...]:
    """Brings one parameter's shards to the first rank of its stage and the merged tensors to global rank 0.

    Returns the row's Hugging Face tensors there and nothing elsewhere.
    """
    whole: tuple[Tensor, ...] = ()
    if parallel.pp_rank == move.stage:
        shards = _gather(move, parameters, parallel) if move.row.expert is None else _fetch(move, parameters, parallel, shapes)
        whole = merge(move.row.layout, shards, model.arch) if shards else ()
    if move.stage == 0 or parallel.tp_rank > 0 or parallel.dp_rank > 0:
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


def _gather(move: _Move, parameters: dict[str, nn.Parameter], parallel: Parallel) -> list[Tensor]:
    """All tensor ranks' shards in rank order on the stage's (tp 0, dp 0) rank, nothing on the others."""
    if parallel.dp_rank > 0:
        return []
    own = parameters[move.row.megatron].detach().to(move.dtype)
    if parallel.tp_size == 1 or not move.row.split_over_tensor_ranks:
        return [own] if parallel.tp_rank == 0 else []
    shards = [torch.empty_like(own) for _ in range(parallel.tp_size)] if parallel.tp_rank == 0 else None
    dist.gather(own.contiguous(), shards, dst=dist.get_global_rank(parallel.tp_group, 0), group=parallel.tp_group)
    return shards or []


def _fetch(move: _Move, parameters: dict[str, nn.Parameter], parallel: Parallel, shapes: dict[str, tuple[int, ...]]) -> list[Tensor]:
    """The whole parameter of an expert on the stage's (tp 0, dp 0) rank, from whoever holds it, nothing on the others.

    That rank is the first of the stage's first group of expert-parallel ranks, which hold every expert once.
    """
    if parallel.expert_replica > 0:
        return []
    if (own := parameters.get(move.row.megatron)) is not None:
        tensor = own.detach().to(move.dtype).contiguous()
        if parallel.ep_rank == 0:
            return [tensor]
        dist.send(tensor, dst=dist.get_global_rank(parallel.ep_group, 0), group=parallel.ep_group)
    elif parallel.ep_rank == 0:
        parts = [shapes[name] for name in move.row.hf]  # one, or two of one shape: one above the other
        tensor = torch.empty((len(parts) * parts[0][0], *parts[0][1:]), dtype=move.dtype, device=parallel.device)
        dist.recv(tensor, src=dist.get_global_rank(parallel.ep_group, move.holder), group=parallel.ep_group)
        return [tensor]
    return []


def named_parameters(model: PolicyModel, parallel: Parallel) -> dict[str, nn.Parameter]:
    """This rank's parameters by the tables' names, which count layers and experts globally."""
    first_expert = parallel.ep_rank * ((model.arch.num_experts or 0) // parallel.ep_size)
    named: dict[str, nn.Parameter] = {}
    for local_name, parameter in model.named_parameters():
        name = canonical_name(local_name)
        if name.startswith(_LAYER_PREFIX):
            local, rest = name.removeprefix(_LAYER_PREFIX).split(".", 1)
            layer = model.decoder.layers[int(local)].layer_number - 1
            name = global_expert_name(f"{_LAYER_PREFIX}{layer}.{rest}", first_expert)
        named[name] = parameter
    return named
