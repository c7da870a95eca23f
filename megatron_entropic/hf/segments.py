"""Mapping of a Megatron parameter's rows to rows of Hugging Face tensors: the layouts of tables.py for whole checkpoints.

Along dimension 0 every layout is a sequence of row ranges, so a checkpoint of any size can be rewritten block by block, in either
direction. No tensors in this file.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from megatron_entropic.hf.architectures import Architecture
from megatron_entropic.hf.tables import Layout, Row


@dataclass(frozen=True)
class Segment:
    """Rows `start` to `stop` of the Hugging Face tensor `name`; zero rows when there is no name."""

    name: str | None
    start: int
    stop: int


def segments(row: Row, arch: Architecture, shapes: Mapping[str, tuple[int, ...]], padded_vocab: int) -> tuple[Segment, ...]:
    """The rows of the whole (unsharded) Megatron parameter of `row`, from first to last.

    Args:
        shapes: of every Hugging Face tensor, tables.hf_shapes(arch).
        padded_vocab: rows of the vocabulary layouts, of which those beyond arch.vocab_size are zero.
    """
    rows = {name: shapes[name][0] for name in row.hf}
    if row.layout is Layout.QKV:
        heads = arch.num_heads // arch.num_kv_heads * arch.head_dim, arch.head_dim, arch.head_dim
        return tuple(
            Segment(name, group * size, (group + 1) * size)
            for group in range(arch.num_kv_heads)
            for name, size in zip(row.hf, heads, strict=True)
        )
    whole = tuple(Segment(name, 0, rows[name]) for name in row.hf)
    if row.layout is Layout.VOCABULARY and padded_vocab > arch.vocab_size:
        return (*whole, Segment(None, 0, padded_vocab - arch.vocab_size))
    return whole


def cut(parts: tuple[Segment, ...], start: int, stop: int) -> tuple[Segment, ...]:
    """The segments of rows `start` to `stop` of what `parts` make together."""
    inside = []
    first = 0
    for part in parts:
        low, high = max(start, first), min(stop, first + part.stop - part.start)
        if low < high:
            inside.append(Segment(part.name, part.start + low - first, part.start + high - first))
        first += part.stop - part.start
    return tuple(inside)
