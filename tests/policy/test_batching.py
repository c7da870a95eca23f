"""Planning and packing: every token once, the same plan everywhere, nothing over the budget."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_entropic.policy.batching import Batch, Sample, build_micro_batch, plan_micro_batches

lengths = st.lists(st.integers(1, 50), min_size=0, max_size=60)


@given(lengths, st.integers(1, 4), st.integers(50, 200))
def test_plan_covers_every_sample_once_within_budget(lengths: list[int], data_parallel: int, max_tokens: int) -> None:
    plan = plan_micro_batches(lengths, data_parallel=data_parallel, max_tokens=max_tokens)
    assert len(plan) == data_parallel
    assert len({len(rank) for rank in plan}) == 1
    placed = sorted(sample for rank in plan for micro_batch in rank for sample in micro_batch)
    assert placed == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in micro_batch) <= max_tokens for rank in plan for micro_batch in rank)


def test_plan_balances_the_ranks() -> None:
    plan = plan_micro_batches([10] * 64, data_parallel=4, max_tokens=80)
    assert {sum(len(micro_batch) for micro_batch in rank) for rank in plan} == {16}


def test_a_sequence_over_the_budget_is_refused() -> None:
    with pytest.raises(ValueError, match=r"batch\.max_tokens_per_micro_batch=16"):
        plan_micro_batches([17], data_parallel=1, max_tokens=16)


def _batch() -> Batch:
    return Batch([Sample([5, 6], [7, 8, 9], [-0.1, -0.2, -0.3], 1.5), Sample([4], [3], [-0.4], -2.0)])


def test_micro_batch_lines_up_tokens_targets_and_weights() -> None:
    batch = _batch()
    batch.old_log_probs_N = torch.tensor([1.0, 2.0, 3.0, 4.0])
    micro = build_micro_batch(batch, [1, 0], device=torch.device("cpu"), pad_multiple=4)
    assert micro.tokens_1T.tolist() == [[4, 5, 6, 7, 8, 0, 0, 0]]
    assert micro.targets_T.tolist() == [3, 6, 7, 8, 9, 0, 0, 0]
    assert micro.positions_1T.tolist() == [[0, 0, 1, 2, 3, 0, 1, 2]]
    assert micro.cu_seqlens.tolist() == [0, 1, 5, 8]
    assert micro.max_seqlen == 4
    assert micro.mask_T.tolist() == [True, False, True, True, True, False, False, False]
    assert micro.advantages_T.tolist() == [-2.0, 0.0, 1.5, 1.5, 1.5, 0.0, 0.0, 0.0]
    assert micro.response_index_T.tolist() == [3, -1, 0, 1, 2, -1, -1, -1]
    assert micro.old_log_probs_T is not None
    assert micro.old_log_probs_T.tolist() == [4.0, 0.0, 1.0, 2.0, 3.0, 0.0, 0.0, 0.0]
    assert micro.sampler_log_probs_T.tolist() == pytest.approx([-0.4, 0.0, -0.1, -0.2, -0.3, 0.0, 0.0, 0.0])


def test_an_empty_micro_batch_is_padding_only() -> None:
    micro = build_micro_batch(_batch(), [], device=torch.device("cpu"), pad_multiple=2)
    assert micro.tokens_1T.shape == (1, 2)
    assert micro.response_tokens == 0


def test_selected_tokens_are_packed_like_their_tokens() -> None:
    batch = _batch()
    batch.selected_N = torch.tensor([False, True, True, True])
    micro = build_micro_batch(batch, [1, 0], device=torch.device("cpu"), pad_multiple=4)
    assert micro.selected_T is not None
    assert micro.selected_T.tolist() == [True, False, False, True, True, False, False, False]
    batch.selected_N = None
    assert build_micro_batch(batch, [0], device=torch.device("cpu")).selected_T is None


def test_mini_batches_keep_their_old_log_probs() -> None:
    batch = _batch()
    batch.old_log_probs_N, batch.old_version = torch.tensor([1.0, 2.0, 3.0, 4.0]), 7
    first, second = batch.mini_batches(2)
    assert (first.old_version, second.old_version) == (7, 7)
    assert first.old_log_probs_N is not None
    assert second.old_log_probs_N is not None
    assert first.old_log_probs_N.tolist() == [1.0, 2.0, 3.0]
    assert second.old_log_probs_N.tolist() == [4.0]


@pytest.mark.parametrize(
    ("sample", "message"),
    [(Sample([], [1], [0.0], 0.0), "sample 0 has an empty prompt"), (Sample([1], [2, 3], [0.0], 0.0), "2 response tokens but 1")],
)
def test_impossible_samples_are_refused(sample: Sample, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Batch([sample])
