"""Any range of a flattened parameter becomes rectangles that tile exactly it."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from megatron.core.dist_checkpointing.mapping import ShardedTensor

from megatron_entropic.checkpoint.optimizer_state import _rectangles


@st.composite
def ranges(draw: st.DrawFn) -> tuple[int, int, int, int, int]:
    """Rows, columns (0: none, a vector), a range of the flattened parameter, and tensor ranks of which this is the last."""
    rows, columns = draw(st.integers(1, 9)), draw(st.integers(0, 7))
    size = rows * max(1, columns)
    first = draw(st.integers(0, size - 1))
    return rows, columns, first, draw(st.integers(first + 1, size)), draw(st.integers(1, 3))


@given(ranges())
def test_rectangles_tile_the_range(case: tuple[int, int, int, int, int]) -> None:
    rows, columns, first, stop, ranks = case
    shape = (rows, columns) if columns else (rows,)
    local = torch.arange(rows * max(1, columns), dtype=torch.float32).view(shape)
    layers, layer = 3, 1
    offsets = ((0, layer, layers), (1, ranks - 1, ranks))  # stacked over layers, split over tensor ranks
    place = ShardedTensor.from_rank_offsets("weight", local, *offsets, replica_id=(0, 0, 5), prepend_axis_num=1)
    whole = torch.full(place.global_shape, -1.0)
    flat = local.view(-1)[first:stop].clone()
    shards = list(_rectangles(place, "optimizer.", flat, first))
    assert len(shards) <= 3
    for shard in shards:
        assert shard.key == "optimizer.weight"
        assert shard.replica_id == (0, 0, 0)
        index = tuple(slice(start, start + size) for start, size in zip(shard.global_offset, shard.local_shape, strict=True))
        assert (whole[index] == -1).all(), "no element twice"
        whole[index] = shard.data
        assert shard.data.untyped_storage().data_ptr() == flat.untyped_storage().data_ptr(), "a view: loading fills the state itself"
    mine = whole[layer].chunk(ranks)[ranks - 1].reshape(-1)
    assert torch.equal(mine[first:stop], flat)
    outside = whole.clone()
    outside[layer].chunk(ranks)[ranks - 1].view(-1)[first:stop] = -1
    assert (outside == -1).all()
