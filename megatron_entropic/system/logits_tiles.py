"""Sizes of the tiles in which the output layer's logits exist, from the device: as large as pays, small beside its memory.

Pure, and here because the planner, which does without torch, counts the same tiles (entropy/linear_head.py computes them).

A tile is a rectangle of the logits, tokens by columns. Without a selection it spans all tokens, and is as wide as its budget of
bytes allows: each tile costs about 40 launches and one pass over the float32 sum of hidden's gradient. A selection needs whole
rows, so the tile is as many tokens as its budget allows: each tile costs one pass over the weight and its gradient.

On a CPU the budget follows the caches: what its matrix library holds beside a tile grows with the tile.

On a GPU it follows the memory, by powers of 2, so that equal GPUs agree however much their drivers keep back: tensor ranks select
together, tile by tile. 80 GB give 256 MiB, 8,192 columns of bfloat16 at 16,384 tokens; a selection has four times that, 3,533 rows
of 151,936 columns. The products then have thousands of blocks of 128 x 256 for the 132 multiprocessors of an H100.
"""

from typing import NamedTuple

CHUNK_BYTES = 256 * 2**20
"""On a CPU, of a tile's logits in float32."""

TILES, MIN_COLUMNS, MIN_ELEMENTS, ALIGNMENT = 160, 1024, 2**19, 64
"""On a CPU, tiles of all tokens: about so many, but none so narrow, so small or so oddly wide that the products lose speed. What a
CPU's matrix library holds beside the tile grows with it: with tiles of 2,376 columns the process held up to 12% of float32 logits."""

MEMORY_PARTS, SELECTION_BUDGETS = 256, 4
"""On a GPU: tiles in its memory (rounded down to a power of 2), and what a tile that is selected from has in place of one."""

GPU_COLUMNS, GPU_TOKENS, GPU_ROW_ELEMENTS = 256, 128, 64
"""On a GPU: multiples of columns and tokens, those of a block of its matrix products; and of the elements from one row to the next,
so that each row of an odd vocabulary begins at a multiple of 128 bytes (bfloat16) and is read 16 bytes at a time."""


class LogitsShape(NamedTuple):
    """The logits of some tokens on one rank.

    Attributes:
        columns, width: those that are tokens; those that each rank stores, padding included, the same on all ranks.
        element_bytes: of one logit.
    """

    tokens: int
    columns: int
    width: int
    element_bytes: int


class TileShape(NamedTuple):
    """`tokens` x `columns` of a tile, of which those at the ends have fewer; `row_multiple`: of elements from row to row."""

    tokens: int
    columns: int
    row_multiple: int

    def row_stride(self, columns: int) -> int:
        """Elements from one row to the next of a tile of so many columns."""
        return _round_up(columns, self.row_multiple)

    @property
    def elements(self) -> int:
        """Memory of the largest tile, in elements."""
        return self.tokens * self.row_stride(self.columns)


def tile_shape(gpu_bytes: int | None, logits: LogitsShape, *, selects: bool, chunk_tokens: int | None = None) -> TileShape:
    """The tiles of `logits` on a GPU with so much memory, or on a CPU (None).

    Args:
        selects: the K largest of each row are looked for, so a tile has all columns. Its tokens are the same on all tensor ranks.
        chunk_tokens: tokens of a tile, which then has all columns.
    """
    if chunk_tokens is not None or selects:
        tokens = chunk_tokens or (_cpu_tokens(logits) if gpu_bytes is None else _gpu_tokens(gpu_bytes, logits))
        columns = logits.columns
    else:
        tokens = logits.tokens
        columns = _cpu_columns(logits) if gpu_bytes is None else _gpu_columns(gpu_bytes, logits)
    return TileShape(min(tokens, logits.tokens), max(1, min(columns, logits.columns)), 1 if gpu_bytes is None else GPU_ROW_ELEMENTS)


def _cpu_tokens(logits: LogitsShape) -> int:
    return max(1, CHUNK_BYTES // (4 * logits.width))


def _cpu_columns(logits: LogitsShape) -> int:
    columns = max(-(-logits.columns // TILES), MIN_COLUMNS, MIN_ELEMENTS // logits.tokens)
    return min(_round_up(columns, ALIGNMENT), max(1, CHUNK_BYTES // (4 * logits.tokens)))


def _gpu_tokens(gpu_bytes: int, logits: LogitsShape) -> int:
    row_bytes = logits.element_bytes * _round_up(logits.width, GPU_ROW_ELEMENTS)
    return _even_part(logits.tokens, SELECTION_BUDGETS * _gpu_budget(gpu_bytes) // row_bytes, GPU_TOKENS)


def _gpu_columns(gpu_bytes: int, logits: LogitsShape) -> int:
    most = _gpu_budget(gpu_bytes) // (logits.element_bytes * logits.tokens)
    return _even_part(logits.columns, max(most, GPU_COLUMNS), GPU_COLUMNS)


def _gpu_budget(gpu_bytes: int) -> int:
    """Bytes of a tile: a power of 2."""
    return (1 << (gpu_bytes.bit_length() - 1)) // MEMORY_PARTS


def _even_part(whole: int, most: int, multiple: int) -> int:
    """The largest of as few and as equal parts of `whole` as parts of at most `most` can be; a multiple where `most` allows one."""
    most = most // multiple * multiple or max(most, 1)
    parts = -(-whole // most)
    return min(_round_up(-(-whole // max(parts, 1)), multiple), most)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
