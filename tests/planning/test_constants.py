"""Numbers that planning repeats, because their homes import torch, are the same in both places."""

import pytest

from megatron_entropic.entropy import linear_head, sequence_chunks
from megatron_entropic.planning import communication, lm_head, serving, training_memory
from megatron_entropic.policy import objective
from megatron_entropic.rollout.vllm import command_line
from megatron_entropic.rollout.weight_sync import transports


def test_repeated_numbers() -> None:
    for name in ("CHUNK_BYTES", "TILES", "MIN_COLUMNS", "MIN_ELEMENTS", "ALIGNMENT"):
        assert getattr(lm_head, name) == getattr(linear_head, name)
    assert lm_head.CHUNK_TOKENS == sequence_chunks.CHUNK_TOKENS
    assert transports.NCCLTransport.bucket_bytes == training_memory.BUCKET_BYTES
    assert serving.MAX_SEQUENCES == command_line.MAX_SEQUENCES
    assert 8 * (len(objective.CONTROL_SUMS) + 1) == communication.CONTROL_BYTES
    assert 8 * (len(objective.SUMS) + len(objective.MAXIMA)) == communication.STATISTICS_BYTES


class _Shard:
    def __init__(self, columns: int) -> None:
        self.columns = self.width = columns


class _Request:
    def __init__(self, columns: int, *, selects: bool) -> None:
        self.shard, self.selects = _Shard(columns), selects


@pytest.mark.parametrize("selects", [False, True])
@pytest.mark.parametrize(("tokens", "columns"), [(100, 4096), (9216, 16_128), (16_384, 151_936), (40_000, 1024), (1, 19_000)])
def test_tiles_of_the_output_head(tokens: int, columns: int, selects: bool) -> None:
    head = linear_head.Head(_Request(columns, selects=selects), rows=None, chunk_tokens=None, accumulate_main_grad=True)  # type: ignore[arg-type]
    assert lm_head.tile_shape(tokens, columns, selects=selects) == head.tile_shape(tokens)
