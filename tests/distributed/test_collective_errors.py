"""Which rank explains the end of a run: the one that failed, and not those whose collectives broke because of it."""

import subprocess
import sys
import time
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from megatron_entropic.distributed.collective_errors import peer_is_gone, peer_is_late
from megatron_entropic.launch.launcher import _wait_for_first_failure
from megatron_entropic.launch.worker import EXIT_FAILED, EXIT_FOLLOWED
from tests.run_ranks import run_ranks

LIMIT_S = 1.0


def all_reduce_without_rank_one(seconds: float) -> tuple[bool, bool]:
    """(gone, late) of the error that rank 0 gets, while rank 1 stays away for `seconds` and then ends."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=LIMIT_S))
    dist.all_reduce(torch.ones(1))
    if dist.get_rank() == 1:
        time.sleep(seconds)
        return False, False
    try:
        dist.all_reduce(torch.ones(1))
    except RuntimeError as error:
        return peer_is_gone(error), peer_is_late(error)
    raise AssertionError("the collective succeeded alone")


@pytest.mark.distributed
@pytest.mark.parametrize(("away_s", "expected"), [(0.2, (True, False)), (4 * LIMIT_S, (False, True))])
def test_errors_of_gloo_are_told_apart(away_s: float, expected: tuple[bool, bool]) -> None:
    assert run_ranks(all_reduce_without_rank_one, 2, away_s)[0] == expected


def test_other_errors_are_neither() -> None:
    for message in ("Connection closed by peer", "mat1 and mat2 shapes cannot be multiplied", "gloo is not built in"):
        assert not peer_is_gone(RuntimeError(message))
        assert not peer_is_late(RuntimeError(message))


def rank(code: int, after_s: float = 0.0) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", f"import sys, time; time.sleep({after_s}); sys.exit({code})"])


@pytest.mark.parametrize(
    ("codes", "cause"),
    [
        ([(EXIT_FOLLOWED, 0.0), (0, 30.0), (EXIT_FAILED, 1.0)], 2),
        ([(EXIT_FAILED, 1.0), (EXIT_FOLLOWED, 0.0), (EXIT_FOLLOWED, 0.0)], 0),
        ([(EXIT_FOLLOWED, 0.0), (EXIT_FOLLOWED, 0.0), (0, 0.0)], 0),
    ],
)
def test_the_launcher_names_the_rank_that_failed_by_itself(codes: list[tuple[int, float]], cause: int) -> None:
    ranks = [rank(*code) for code in codes]
    try:
        assert _wait_for_first_failure(ranks, SimpleNamespace(check=lambda: None)) == cause  # type: ignore[arg-type]
    finally:
        for process in ranks:
            process.kill()
            process.wait()
