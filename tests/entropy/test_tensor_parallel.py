"""token_statistics with the vocabulary on 2 and 4 ranks: the same numbers as on one, few collectives, errors everywhere."""

import math

import pytest
import torch
import torch.distributed as dist

from megatron_entropic.entropy import TokenStatistics, token_statistics
from tests.entropy.oracle import DTYPES, NAMES, Problem, assert_close, expected, gradient_rounding, random_problem, weighted_sum
from tests.entropy.ranks import counted_collectives, equal_on_all_ranks, shard_of, start_group
from tests.run_ranks import run_ranks

pytestmark = pytest.mark.distributed
WORLD_SIZES = [2, 4]


def check_like_one_rank(problem: Problem, group: dist.ProcessGroup) -> None:
    """Against one rank to 1e-6, against the definition to 5e-6; this rank's gradient to 2e-5; equal bits on all ranks."""
    logits_NC = problem.logits_NC.clone().requires_grad_()
    one = token_statistics(logits_NC, problem.targets_N, **problem.arguments())  # type: ignore[arg-type]
    weighted_sum(one, problem.weights_3N).backward()
    shard_NV = shard_of(problem.logits_NC, group).requires_grad_()
    many = token_statistics(shard_NV, problem.targets_N, tp_group=group, **problem.arguments())  # type: ignore[arg-type]
    weighted_sum(many, problem.weights_3N).backward()
    values, grad_NC = expected(problem)
    for name, of_many, of_one, reference in zip(NAMES, many, one, values, strict=True):
        if of_many is None or of_one is None or reference is None:
            assert (of_many, of_one, reference) == (None, None, None)
            continue
        assert equal_on_all_ranks(of_many, group), name
        assert_close(of_many, of_one, 1e-6, what=f"{name} against one rank")
        assert_close(of_many, reference, 5e-6, what=name)
    assert shard_NV.grad is not None
    assert logits_NC.grad is not None
    rounding, tolerance = gradient_rounding(shard_NV.dtype), 2e-5 * max(1.0, 1 / problem.temperature)
    assert_close(shard_NV.grad, shard_of(grad_NC, group), tolerance, rounding, "gradient")
    one_NV = shard_of(logits_NC.grad, group)
    assert_close(shard_NV.grad, one_NV, 1e-6 * max(1.0, 1 / problem.temperature), rounding, "gradient against one rank")


def run_random(problems: int) -> None:
    group = start_group()
    world = dist.get_world_size(group)
    for seed in range(problems):
        rows = seed % 6
        vocab_size = 1 + (seed * 7) % 40 if seed % 3 else 1 + seed % (2 * world)  # a third: fewer than two tokens a rank
        padding = -vocab_size % world + world * (seed % 2)
        check_like_one_rank(random_problem(seed, rows, vocab_size, padding, DTYPES[seed % 3]), group)


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_same_numbers_as_on_one_rank(world_size: int) -> None:
    run_ranks(run_random, world_size, 120)


def run_large() -> None:
    group = start_group()
    generator = torch.Generator().manual_seed(0)
    for scale, offset, dtype in ((3.0, 0.0, torch.bfloat16), (1e4, -3e4, torch.float32), (1.0, 3e4, torch.float32)):
        logits_NC = (torch.randn(4, 8192, generator=generator) * scale + offset).to(dtype)
        targets_N = torch.tensor([0, 2047, 2048, 8000])
        weights_3N = torch.randn(3, 4, generator=generator)
        check_like_one_rank(Problem(logits_NC, targets_N, 8001, 0.6, 0.4, None, True, weights_3N), group)


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_large_vocabularies(world_size: int) -> None:
    run_ranks(run_large, world_size)


def run_ties() -> list[list[bool]]:
    group = start_group()
    logits_NV = torch.zeros(3, 8)
    logits_NV[1, 5] = 1.0  # row 1: one above the ties
    logits_NV[2, ::2] = -1.0  # row 2: ties on odd ids only
    shard_NV = shard_of(logits_NV, group).requires_grad_()
    statistics = token_statistics(shard_NV, torch.zeros(3, dtype=torch.int64), tp_group=group, vocab_size=8, clamp=0.7)  # K = 3
    assert statistics.clamped_entropy is not None
    # an offset of one logit against the rest shows membership: uniform rows alone have no gradient
    saved = statistics.clamped_entropy
    assert_close(saved[[0, 2]], torch.full((2,), math.log(3)), 1e-6)
    (grad_NV,) = torch.autograd.grad(saved.sum(), shard_NV)
    parts = [torch.empty_like(grad_NV) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, grad_NV, group=group)
    kept: list[list[bool]] = (torch.cat(parts, 1).abs() > 1e-4).tolist()
    return kept


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_ties_across_ranks_keep_the_lowest_global_ids(world_size: int) -> None:
    for kept in run_ranks(run_ties, world_size):
        assert kept[1] == [True, True, False, False, False, True, False, False]


def run_counting(
    dtype: torch.dtype, clamp: float | None, validate: bool, masked_out: bool, mean_lowering: bool
) -> tuple[dict[str, int], dict[str, int]]:
    group = start_group()
    shard_NV = torch.randn(5, 16, dtype=dtype, requires_grad=True)
    mask_N = torch.zeros(5, dtype=torch.bool) if masked_out else None
    with counted_collectives() as forward:
        statistics = token_statistics(
            shard_NV,
            torch.zeros(5, dtype=torch.int64),
            tp_group=group,
            vocab_size=30,
            clamp=clamp,
            mask=mask_N,
            mean_lowering=mean_lowering,
            validate=validate,
        )
    with counted_collectives() as backward:
        weighted_sum(statistics, torch.ones(3, 5)).backward()
    return dict(forward), dict(backward)


@pytest.mark.parametrize(
    ("dtype", "clamp", "validate", "forward"),
    [
        (torch.float32, None, False, {"all_reduce": 2}),
        (torch.bfloat16, None, True, {"all_reduce": 3}),
        (torch.bfloat16, 0.0, False, {"all_reduce": 2}),
        (torch.bfloat16, 0.4, False, {"all_reduce": 2 + 2, "all_gather": 1}),
        (torch.float32, 0.4, True, {"all_reduce": 2 + 4 + 1, "all_gather": 1}),
    ],
)
@pytest.mark.parametrize("mean_lowering", [False, True])
def test_number_of_collectives(
    dtype: torch.dtype, clamp: float | None, validate: bool, forward: dict[str, int], mean_lowering: bool
) -> None:
    assert run_ranks(run_counting, 2, dtype, clamp, validate, False, mean_lowering) == [(forward, {})] * 2


def test_no_collective_without_a_row() -> None:
    assert run_ranks(run_counting, 2, torch.float32, 0.4, True, True, True) == [({}, {})] * 2


def run_bad(kind: str, bad_rank: int) -> str:
    group = start_group()
    rank = dist.get_rank(group)
    shard_NV, targets_N = torch.randn(4, 6), torch.zeros(4, dtype=torch.int64)
    if kind == "-inf":
        shard_NV[2] = -math.inf
    elif rank == bad_rank and kind == "target":
        targets_N[2] = 1000
    elif rank == bad_rank:
        shard_NV[2, 3] = float(kind)
        shard_NV[3, 0] = math.nan  # a later row is not the one named
    message = ""
    try:
        token_statistics(shard_NV, targets_N, tp_group=group, vocab_size=6 * dist.get_world_size(group), clamp=0.4)
    except ValueError as error:
        message = str(error)
    assert equal_on_all_ranks(torch.tensor([3.0]), group)  # the ranks are still in step
    return message


@pytest.mark.parametrize("bad_rank", [0, 1])
@pytest.mark.parametrize(
    ("kind", "reason"),
    [("nan", "a logit is NaN"), ("inf", "a logit is +inf"), ("-inf", "every logit is -inf"), ("target", "not a token id")],
)
def test_a_bad_row_of_one_rank_is_named_on_every_rank(kind: str, reason: str, bad_rank: int) -> None:
    for message in run_ranks(run_bad, 2, kind, bad_rank):
        assert message.startswith("row 2 (index (2,) of (4,))")
        assert reason in message


def run_subgroups() -> None:
    start_group()
    groups = [dist.new_group([0, 2]), dist.new_group([1, 3])]
    mine = groups[dist.get_rank() % 2]
    check_like_one_rank(random_problem(dist.get_rank() % 2, 5, 30, 4, torch.float32), mine)


def test_a_group_that_is_not_the_world() -> None:
    run_ranks(run_subgroups, 4)


def run_different_masks() -> TokenStatistics:
    group = start_group()
    statistics = token_statistics(
        shard_of(torch.arange(16.0).view(2, 8), group),
        torch.tensor([-100, 7]),
        tp_group=group,
        vocab_size=8,
        mask=torch.tensor([False, True]),
    )
    return TokenStatistics(*(None if x is None else x.tolist() for x in statistics))  # type: ignore[arg-type]


def test_masked_rows_are_zero_on_every_rank() -> None:
    first, second = run_ranks(run_different_masks, 2)
    assert first == second
    assert first.log_prob[0] == 0.0
    assert first.log_prob[1] == pytest.approx(float(torch.arange(8.0).log_softmax(0)[7]), abs=1e-6)
