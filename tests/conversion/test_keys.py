"""Segments are what `shard` and `merge` do, and the pieces of every layout tile each parameter once."""

import itertools

import numpy as np
import pytest
import torch

from megatron_entropic.conversion.keys import Split, locate, pieces
from megatron_entropic.hf.architectures import FAMILIES
from megatron_entropic.hf.mapping import shard
from megatron_entropic.hf.segments import cut, segments
from megatron_entropic.hf.tables import checkpoint_rows, hf_shapes, padded_vocab_size
from tests.hf.test_hf_mapping import architecture

SPLITS = [Split(tensor, pipeline, expert) for tensor, pipeline, expert in itertools.product((1, 2, 4), (1, 3), (1, 3))]


@pytest.mark.parametrize("name", FAMILIES)
def test_segments_are_what_one_rank_holds(name: str) -> None:
    arch = architecture(name)
    shapes = hf_shapes(arch)
    padded = padded_vocab_size(arch.vocab_size, 4, 1)
    for row in checkpoint_rows(arch):
        tensors = {hf_name: torch.randn(shapes[hf_name]) for hf_name in row.hf}
        expected = shard(row.layout, list(tensors.values()), arch, 0, 1, padded)
        zeros = torch.zeros(padded, *expected.shape[1:])
        parts = [(tensors[part.name] if part.name else zeros)[part.start : part.stop] for part in segments(row, arch, shapes, padded)]
        assert torch.equal(torch.cat(parts), expected), row


def test_a_cut_is_those_rows() -> None:
    arch = architecture("Qwen2ForCausalLM")
    shapes = hf_shapes(arch)
    row = next(row for row in checkpoint_rows(arch) if row.megatron.endswith("linear_qkv.weight"))
    parts = segments(row, arch, shapes, 0)
    rows = [(part.name, number) for part in parts for number in range(part.start, part.stop)]
    for start, stop in itertools.combinations(range(len(rows) + 1), 2):
        inside = [(part.name, number) for part in cut(parts, start, stop) for number in range(part.start, part.stop)]
        assert inside == rows[start:stop]


@pytest.mark.parametrize("split", SPLITS, ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_pieces_tile_every_parameter_once(name: str, split: Split) -> None:
    arch = architecture(name)
    shapes = hf_shapes(arch)
    padded = padded_vocab_size(arch.vocab_size, 4, split.tensor)
    ranks = set()
    places = set()
    for row in checkpoint_rows(arch):
        covered: np.ndarray | None = None
        for piece in pieces(row, arch, shapes, padded, split):
            covered = np.zeros(piece.shape, int) if covered is None else covered
            index = (slice(*piece.rows), slice(*piece.columns)) if piece.columns else (slice(*piece.rows),)
            covered[index] += 1
            ranks.add(piece.rank)
        assert covered is not None
        assert (covered == 1).all(), row
        places.add((locate(row, arch).key, locate(row, arch).prefix))
    assert len(places) == len(checkpoint_rows(arch))
    assert ranks <= set(range(split.tensor * split.pipeline * split.expert))
