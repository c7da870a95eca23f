"""The control sums on real ranks: the same bits everywhere, exact, one small all-reduce, and faults that stay where they are."""

import math
import random
import struct
from contextlib import ExitStack
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist

from megatron_entropic.config import ParallelConfig
from megatron_entropic.distributed.parallel import Parallel, initialize_parallel
from megatron_entropic.distributed.reductions import reduce_control
from megatron_entropic.policy.objective import CONTROL_SUMS
from tests.run_ranks import run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

LAYOUTS = {"tp2-pp2": ParallelConfig(tensor=2, pipeline=2, data=1), "tp2-dp2": ParallelConfig(tensor=2, pipeline=1, data=2)}
ENTROPIES, OTHERS = CONTROL_SUMS[1:3], CONTROL_SUMS[3:]
OTHER_COLLECTIVES = (
    "broadcast",
    "broadcast_object_list",
    "reduce",
    "all_gather",
    "all_gather_object",
    "all_gather_into_tensor",
    "barrier",
)
REQUESTS = (None, 0.0, -0.0, -0.25, 0.1, 1e-300, -1.7976931348623157e308, 5e-324, 3.5)


def contribution(case: int, dp_rank: int) -> dict[str, float]:
    """The sums of one data-parallel rank: large, small, and of either sign."""
    rng = random.Random(f"{case}.{dp_rank}")
    scale = 10.0 ** (case % 9 - 2)
    return {"tokens": float(rng.randrange(1, 10**6))} | {name: rng.uniform(-1, 1) * scale for name in CONTROL_SUMS[1:]}


def sums_of(parallel: Parallel, case: int, spoilt: tuple[int, str, float] | None = None) -> dict[str, torch.Tensor]:
    """As Policy passes them: the last stage's ranks have them, equal over tensor ranks; other stages have something else."""
    values = contribution(case, parallel.dp_rank) if parallel.is_last_stage else dict.fromkeys(CONTROL_SUMS, math.nan)
    if spoilt is not None and parallel.is_last_stage and parallel.dp_rank == spoilt[0]:
        values[spoilt[1]] = spoilt[2]
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}


def bits(result: tuple[dict[str, float], float | None]) -> tuple[Any, ...]:
    values, request = result
    return (*(struct.pack("<d", value) for value in values.values()), None if request is None else struct.pack("<d", request))


def on_a_rank(layout: ParallelConfig) -> dict[str, Any]:
    """Every case on one rank; the results and the all-reduces that one call made."""
    parallel = initialize_parallel(layout, 0)
    plain = [reduce_control(sums_of(parallel, case), None, parallel) for case in range(18)]
    # Only rank 0's request counts.
    requests = [reduce_control(sums_of(parallel, 0), request if parallel.rank == 0 else 77.0, parallel)[1] for request in REQUESTS]
    last = layout.data - 1
    bad = {
        (name, value): reduce_control(sums_of(parallel, 0, (last, name, value)), 0.5, parallel)
        for name in CONTROL_SUMS[1:]
        for value in (math.nan, math.inf, -math.inf, 2.0**33)
    }
    calls: list[int] = []
    real = dist.all_reduce

    def counted(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        calls.append(tensor.numel() * tensor.element_size())
        return real(tensor, *args, **kwargs)

    with ExitStack() as patches:
        patches.enter_context(patch.object(dist, "all_reduce", counted))
        for other in OTHER_COLLECTIVES:
            patches.enter_context(patch.object(dist, other, side_effect=AssertionError(f"a further collective: {other}")))
        reduce_control(sums_of(parallel, 3), 1.0, parallel)
    return {"plain": plain, "requests": requests, "bad": bad, "calls": calls}


@pytest.fixture(scope="module", params=list(LAYOUTS))
def results(request: pytest.FixtureRequest) -> tuple[ParallelConfig, list[dict[str, Any]]]:
    layout = LAYOUTS[request.param]
    return layout, run_ranks(on_a_rank, layout.world_size, layout)


Results = tuple[ParallelConfig, list[dict[str, Any]]]


def test_every_rank_has_the_same_bits(results: Results) -> None:
    for first, second in pairwise(results[1]):
        assert [bits(result) for result in first["plain"]] == [bits(result) for result in second["plain"]]
        assert [bits(result) for result in first["bad"].values()] == [bits(result) for result in second["bad"].values()]
        assert repr(first["requests"]) == repr(second["requests"])


def test_sums_are_those_of_all_tokens(results: Results) -> None:
    layout, ranks = results
    for case, (values, request) in enumerate(ranks[0]["plain"]):
        assert request is None
        parts = [contribution(case, dp_rank) for dp_rank in range(layout.data)]
        assert list(values) == list(CONTROL_SUMS)
        for name, value in values.items():
            assert value == pytest.approx(math.fsum(part[name] for part in parts), rel=0, abs=1e-8)
        assert values["tokens"] == sum(part["tokens"] for part in parts)


def test_rank_zero_hands_its_request_to_all(results: Results) -> None:
    for rank in results[1]:
        assert rank["requests"][0] is None
        assert rank["requests"] == list(REQUESTS)


def test_a_bad_number_spoils_only_its_kind(results: Results) -> None:
    layout, ranks = results
    parts = [contribution(0, dp_rank) for dp_rank in range(layout.data)]
    for (name, _), (values, request) in ranks[-1]["bad"].items():
        spoilt = ENTROPIES if name in ENTROPIES else OTHERS
        assert request == 0.5
        for other, value in values.items():
            if other in spoilt:
                assert math.isnan(value)
            else:
                assert value == pytest.approx(math.fsum(part[other] for part in parts), rel=0, abs=1e-8)


def test_one_all_reduce_of_at_most_64_bytes(results: Results) -> None:
    for rank in results[1]:
        assert len(rank["calls"]) == 1
        assert rank["calls"][0] <= 64
