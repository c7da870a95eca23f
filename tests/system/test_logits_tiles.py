"""The tiles of the logits, from what a device is: on a GPU by its memory, aligned and even; on a CPU as its caches want them."""

import pytest

from megatron_entropic.system.logits_tiles import GPU_COLUMNS, LogitsShape, tile_shape

GB = 2**30
H100, A100_40, H200 = int(79.1 * GB), int(39.4 * GB), int(139.8 * GB)


@pytest.mark.parametrize(
    ("memory", "tokens", "columns", "wanted"),
    [
        (H100, 16_384, 151_936, 8192),
        (80 * GB, 16_384, 151_936, 8192),
        (A100_40, 16_384, 151_936, 4096),
        (H200, 16_384, 151_936, 15_360),
        (H100, 64, 151_936, 151_936),
        (H100, 16_384, 8200, 4352),
        (H100, 2**20, 151_936, 256),
        (H100, 16_384, 0, 1),
    ],
)
def test_columns_on_a_gpu(memory: int, tokens: int, columns: int, wanted: int) -> None:
    """Within the budget, a 256th of the memory rounded down to a power of 2; equal parts, not full ones and a rest."""
    tile = tile_shape(memory, LogitsShape(tokens, columns, columns, 2), selects=False)
    assert tile[:2] == (tokens, wanted)
    assert 2 * tile.elements <= memory // 256 or wanted <= GPU_COLUMNS


@pytest.mark.parametrize(
    ("memory", "tokens", "width", "wanted"),
    [(H100, 16_384, 151_936, 3328), (H100, 16_384, 19_008, 16_384), (A100_40, 16_384, 151_936, 1664), (24 * GB, 5, 151_936, 5)],
)
def test_tokens_on_a_gpu(memory: int, tokens: int, width: int, wanted: int) -> None:
    """Whole rows, in four budgets; the same on all tensor ranks, whatever part of the width is padding on one."""
    for columns in (width, width - 700):
        tile = tile_shape(memory, LogitsShape(tokens, columns, width, 2), selects=True)
        assert tile[:2] == (wanted, columns)
        assert 2 * tile.elements <= memory // 64


def test_rows_of_odd_vocabularies_are_aligned_on_a_gpu() -> None:
    tile = tile_shape(H100, LogitsShape(100, 50_257, 50_304, 2), selects=True)
    assert tile.row_stride(50_257) == 50_304
    assert tile_shape(None, LogitsShape(100, 50_257, 50_304, 2), selects=True).row_stride(50_257) == 50_257


@pytest.mark.parametrize("memory", [None, H100])
def test_asked_for_tokens(memory: int | None) -> None:
    assert tile_shape(memory, LogitsShape(100, 900, 960, 4), selects=False, chunk_tokens=7)[:2] == (7, 900)
    assert tile_shape(memory, LogitsShape(5, 900, 960, 4), selects=True, chunk_tokens=7)[:2] == (5, 900)


@pytest.mark.parametrize(
    ("tokens", "columns", "selects", "wanted"),
    [
        (100, 4096, False, (100, 4096)),
        (9216, 16_128, False, (9216, 1024)),
        (40_000, 1024, False, (40_000, 1024)),
        (1, 19_000, False, (1, 19_000)),
        (512, 152_064, False, (512, 1024)),
        (16_384, 151_936, True, (441, 151_936)),
        (1, 19_000, True, (1, 19_000)),
    ],
)
def test_tiles_on_a_cpu(tokens: int, columns: int, selects: bool, wanted: tuple[int, int]) -> None:
    assert tile_shape(None, LogitsShape(tokens, columns, columns, 2), selects=selects)[:2] == wanted
