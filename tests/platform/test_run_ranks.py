"""The helper that every multi-rank test stands on: it must not hang, hide a failure, or leave a process behind."""

import os
import time

import pytest

from tests.run_ranks import RankFailedError, run_ranks


def environment(extra: str) -> tuple[str, str, str, str]:
    return os.environ["RANK"], os.environ["WORLD_SIZE"], os.environ["LOCAL_RANK"], extra


def test_results_come_back_in_rank_order() -> None:
    assert run_ranks(environment, 3, "x") == [("0", "3", "0", "x"), ("1", "3", "1", "x"), ("2", "3", "2", "x")]


def one_fails(pid_file: str) -> None:
    with open(pid_file, "a") as file:
        file.write(f"{os.getpid()}\n")
    if os.environ["RANK"] == "1":
        time.sleep(0.3)
        raise ValueError("rank one is unwell")
    time.sleep(60)


def test_the_first_failure_is_raised_and_ends_the_others(tmp_path: object) -> None:
    pid_file = f"{tmp_path}/pids"
    start = time.monotonic()
    with pytest.raises(RankFailedError, match=r"rank 1 of 3:\n(.|\n)*one_fails(.|\n)*ValueError: rank one is unwell"):
        run_ranks(one_fails, 3, pid_file)
    assert time.monotonic() - start < 20
    with open(pid_file) as file:
        pids = [int(line) for line in file]
    assert len(pids) == 3
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def sleeps() -> None:
    time.sleep(60)


def test_a_run_that_takes_too_long_is_ended() -> None:
    with pytest.raises(RankFailedError, match=r"ranks \[0, 1\] did not finish within 0.5 s"):
        run_ranks(sleeps, 2, timeout=0.5)


def dies() -> None:
    os._exit(3)


def test_a_rank_that_dies_silently_is_reported() -> None:
    with pytest.raises(RankFailedError, match="rank 0 died with exit code 3"):
        run_ranks(dies, 1)
