"""The optimizer's state as checkpoints have it: every rank saves the part it owns, as rectangles of whole parameters.

Megatron's distributed optimizer gives each data-parallel rank a contiguous range of every flattened parameter. Such a range of a
matrix is at most three rectangles: the end of a row, whole rows, the beginning of a row. Saved as those, the state needs no gathering
(a save holds training up for a copy alone), nobody holds more than its own part, and every other layout can read what it needs.

Shapes: R rows and C columns of a parameter on this rank.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.optimizer import MegatronOptimizer
from torch import Tensor

STATES = ("param", "exp_avg", "exp_avg_sq")
"""The float32 master of a weight, and Adam's two moments."""


def sharded_optimizer_state(optimizer: MegatronOptimizer, sharded_model: dict[str, Any]) -> list[ShardedTensor]:
    """This rank's shard of the optimizer state, sharing its memory: saved from there, and loaded into it.

    Args:
        sharded_model: the model's own sharded_state_dict, which says where each parameter's part lies in the whole.

    No collective. The state must exist: `make_state` first, when there was no update yet.
    """
    located: dict[Tensor, Any] = {entry.data: entry for entry in nested_values(sharded_model) if isinstance(entry.data, Tensor)}
    chained = list(getattr(optimizer, "chained_optimizers", [optimizer]))
    shards: list[ShardedTensor] = []
    for number, part in enumerate(chained):
        prefix = f"chained_{number}." if len(chained) > 1 else ""  # Megatron's names
        for parameter, first, stop in _owned_ranges(part):
            states = part._get_main_param_and_optimizer_states(parameter)
            for name in STATES:
                flat = states[name].detach().view(-1)
                assert flat.numel() == stop - first
                key = f"{prefix}optimizer.state.{name}."
                shards += _rectangles(located[parameter], key, flat, first)
    return shards


def make_state(optimizer: MegatronOptimizer) -> None:
    """Gives every parameter the state that its first update would, with values that are to be replaced."""
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        part._init_optimizer_states_with_dummy_values()


def set_update_count(optimizer: MegatronOptimizer, updates: int) -> None:
    """Sets how many updates Adam's bias correction has seen: torch's keeps it per parameter, fused ones per group."""
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        counted = [state for state in part.optimizer.state.values() if "step" in state]
        for state in counted:
            state["step"] = torch.as_tensor(float(updates), dtype=torch.float32)
        for group in part.optimizer.param_groups:
            if not counted or "step" in group:
                group["step"] = updates


def _owned_ranges(optimizer: Any) -> Iterator[tuple[Tensor, int, int]]:
    """(parameter, first, stop): the range of each flattened parameter whose state this rank has."""
    for buffer in optimizer.gbuf_ranges:
        for buckets in buffer.values():
            for bucket in buckets:
                for parameter, ranges in bucket["param_map"].items():
                    yield parameter, ranges["param"].start, ranges["param"].end


def _rectangles(part: ShardedTensor | ShardedTensorFactory, key: str, flat: Tensor, first: int) -> Iterator[ShardedTensor]:
    """Elements `first`, first + 1, ... of a parameter's `part`, as rectangles of the whole; views of `flat`.

    A factory (SwiGLU's gate and up) lays the part's halves, one below the other, at different offsets.
    """
    pieces = list(nested_values(part.build())) if isinstance(part, ShardedTensorFactory) else [part]
    start = 0
    for piece in pieces:
        stop = start + math.prod(piece.local_shape)
        low, high = max(start, first), min(stop, first + flat.numel())
        if low < high:
            yield from _cut(piece, key, flat[low - first : high - first], low - start)
        start = stop


def _cut(piece: ShardedTensor, key: str, flat: Tensor, first: int) -> Iterator[ShardedTensor]:
    """As `_rectangles`, for a piece at one offset."""
    *above, columns = piece.local_shape
    if math.prod(above) != (above[-1] if above else 1):
        raise NotImplementedError(f"{piece.key}: {piece.local_shape} has more than two axes that are not 1")
    done = 0
    while done < flat.numel():
        row, column = divmod(first + done, columns)
        if column or flat.numel() - done < columns:
            rows, width = 1, min(columns - column, flat.numel() - done)
        else:
            rows, width = (flat.numel() - done) // columns, columns
        sizes = (rows, width) if above else (width,)
        offsets = (row, column) if above else (column,)
        yield _shard(piece, key, flat[done : done + rows * width], sizes, offsets)
        done += rows * width


def _shard(piece: ShardedTensor, key: str, flat: Tensor, sizes: tuple[int, ...], offsets: tuple[int, ...]) -> ShardedTensor:
    lead = len(piece.global_shape) - len(sizes)
    shape = (1,) * lead + sizes
    offset = tuple(piece.global_offset[:lead]) + tuple(
        start + offset for start, offset in zip(piece.global_offset[lead:], offsets, strict=True)
    )
    return replace(
        piece,
        key=key + piece.key,
        data=flat.view(shape),
        dtype=flat.dtype,
        local_shape=shape,
        global_offset=offset,
        axis_fragmentations=None,  # no regular grid
        prepend_axis_num=0,
        replica_id=(*piece.replica_id[:2], 0),  # data-parallel ranks own different parts
    )
