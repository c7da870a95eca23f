"""Location of a table row's parameter in a distributed checkpoint, and its chunks under a parallel layout.

Megatron stacks equal layers (and a layer's experts) into one tensor with leading axes: layer 3's linear_qkv.weight [R, C] is
`decoder.layers.self_attention.linear_qkv.weight` [layers, R, C] at [3]. No tensors in this file.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from megatron_entropic.hf.architectures import Architecture
from megatron_entropic.hf.segments import segments
from megatron_entropic.hf.tables import FUSED_NORMS, Layout, Row

_OPTIMIZER = re.compile(r"(chained_\d+\.)?optimizer\.(state\.param\.)?")
_LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.+)")
_EXPERT = re.compile(r"(mlp\.experts)\.local_experts\.(\d+)\.(.+)")


@dataclass(frozen=True)
class Location:
    """A parameter in a checkpoint: the tensor `key`, at index `prefix` of its leading axes, which have `counts` entries."""

    key: str
    prefix: tuple[int, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Split:
    """A parallel layout, as far as it cuts weights."""

    tensor: int = 1
    pipeline: int = 1
    expert: int = 1


@dataclass(frozen=True)
class Piece:
    """One rank's shard of one parameter: rows and columns of the whole, and the rank's number in the layout."""

    location: Location
    shape: tuple[int, ...]
    """Of the whole parameter, without leading axes."""
    rows: tuple[int, int]
    columns: tuple[int, int] | None
    """None: the parameter has one axis, or all columns are in the piece."""
    rank: int


def locate(row: Row, arch: Architecture) -> Location:
    """The location at which Megatron saves the parameter of `row`."""
    layer = _LAYER.fullmatch(row.megatron)
    if layer is None:
        return Location(row.megatron, (), ())
    index, rest = int(layer[1]), layer[2]
    if expert := _EXPERT.fullmatch(rest):
        assert arch.num_experts is not None
        key = f"decoder.layers.{expert[1]}.experts.{expert[3]}"
        return Location(key, (index, int(expert[2])), (arch.num_layers, arch.num_experts))
    return Location(f"decoder.layers.{_saved_name(rest, arch)}", (index,), (arch.num_layers,))


def is_optimizer(key: str) -> bool:
    """Whether a tensor of a training checkpoint is the optimizer's."""
    return _OPTIMIZER.match(key) is not None


def master_of(key: str) -> str | None:
    """The key of the weight whose float32 master the optimizer's tensor `key` is; None when it is none."""
    found = _OPTIMIZER.match(key)
    return key[found.end() :] if found and found[2] else None


def alternative_locations(row: Row, arch: Architecture) -> tuple[Location, ...]:
    """The same parameter's keys in checkpoints of other makers: layers not stacked, norms not fused (or fused)."""
    layer = _LAYER.fullmatch(row.megatron)
    first = locate(row, arch)
    if layer is None:
        return (first,)
    plain = Location(f"decoder.layers.{layer[2]}", first.prefix, first.counts)
    names = dict.fromkeys([first, plain]) if row.expert is None else {first: None}
    single = [
        Location(other.key.replace("decoder.layers.", f"decoder.layers.{layer[1]}.", 1), other.prefix[1:], other.counts[1:])
        for other in names
    ]
    return (*names, *single)


def pieces(row: Row, arch: Architecture, shapes: Mapping[str, tuple[int, ...]], padded_vocab: int, split: Split) -> Iterator[Piece]:
    """The chunks in which `split`'s ranks would save the parameter, each once, as Megatron-Core cuts it."""
    shape = megatron_shape(row, arch, shapes, padded_vocab)
    where = locate(row, arch)
    stage = _stage(row, arch, split)
    if row.expert is not None:
        assert arch.num_experts is not None
        first_rank = (stage * split.tensor) * split.expert + row.expert // (arch.num_experts // split.expert)
        parts = 2 if row.layout is Layout.GATE_UP else 1
        for part in range(parts):
            yield Piece(where, shape, _share(shape[0], part, parts), None, first_rank)
        return
    for tensor_rank in range(split.tensor):
        rank = (stage * split.tensor + tensor_rank) * split.expert
        if row.layout is Layout.REPLICATED:
            if tensor_rank == 0:
                yield Piece(where, shape, (0, shape[0]), None, rank)
        elif row.layout is Layout.ROW:
            columns = None if split.tensor == 1 else _share(shape[1], tensor_rank, split.tensor)
            yield Piece(where, shape, (0, shape[0]), columns, rank)
        elif row.layout is Layout.GATE_UP:
            for half in (0, split.tensor):
                yield Piece(where, shape, _share(shape[0], half + tensor_rank, 2 * split.tensor), None, rank)
        else:
            yield Piece(where, shape, _share(shape[0], tensor_rank, split.tensor), None, rank)


def megatron_shape(row: Row, arch: Architecture, shapes: Mapping[str, tuple[int, ...]], padded_vocab: int) -> tuple[int, ...]:
    """Shape of the whole Megatron parameter of `row`, without leading axes."""
    rows = sum(part.stop - part.start for part in segments(row, arch, shapes, padded_vocab))
    return (rows, *shapes[row.hf[0]][1:])


def _saved_name(parameter: str, arch: Architecture) -> str:
    """Megatron saves norms under the name they have when fused into the next linear layer; before experts there is none."""
    for fused, plain in FUSED_NORMS.items():
        if parameter == plain and not (fused.startswith("mlp.") and arch.num_experts):
            return fused
    return parameter


def _stage(row: Row, arch: Architecture, split: Split) -> int:
    layer = _LAYER.fullmatch(row.megatron)
    if layer:
        return int(layer[1]) // (arch.num_layers // split.pipeline)
    return 0 if row.megatron.startswith("embedding.") else split.pipeline - 1


def _share(size: int, part: int, parts: int) -> tuple[int, int]:
    return size // parts * part, size // parts * (part + 1)
