"""Verifier processes: an answer may hang, fill the memory, crash or lie; it costs one process a limit, and nobody else anything."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_entropic.tasks import Problem
from megatron_entropic.tasks.verification import Limits, VerifierError, VerifierPool, VerifierSpec, VerifierWorker

PROMPT = "say \ud800 it"
SPEC = VerifierSpec("tests.tasks.awkward_verifiers:make_awkward", {"prompt": PROMPT}, 7)
LIMITS = Limits(cpu_s=0.5, wall_s=30.0, memory_bytes=2**30)
ASKED = Problem(PROMPT, {"wanted": "é\n\0"})


@pytest.fixture(scope="module")
def worker() -> Iterator[VerifierWorker]:
    worker = VerifierWorker(SPEC, LIMITS)
    yield worker
    worker.close()


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def all_gone(*pids: int) -> bool:
    """Waits up to ten seconds for it."""
    deadline = time.monotonic() + 10
    while not all(map(gone, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return all(map(gone, pids))


@pytest.mark.parametrize(
    ("response", "score", "outcome", "reason"),
    [
        ("echo é\n\0", 1.0, "scored", ""),
        ("echo other", 0.0, "scored", ""),
        ("return true", 1.0, "scored", ""),
        ("return half", 0.5, "scored", ""),
        ("print", 1.0, "scored", ""),
        ("compute", 0.0, "limit", "took more CPU time than reward.cpu_limit_s=0.5"),
        ("swallow", 0.0, "limit", "took more CPU time than reward.cpu_limit_s=0.5"),
        ("fill", 0.0, "limit", "needed more memory than reward.memory_gb=1"),
        ("raise thing", 0.0, "failed", "KeyError: 'no\\nsuch thing'"),
        ("return none", 0.0, "failed", "TypeError: float() argument must be a string or a real number, not 'NoneType'"),
        ("return two", 0.0, "failed", "returned 2.0, which is not a score in [0, 1]"),
        ("return text", 0.0, "failed", "returned the text '1.0', not a number in [0, 1]"),
        ("return nan", 0.0, "failed", "returned nan, which is not a score in [0, 1]"),
        ("exit 3", 0.0, "failed", "SystemExit: 3"),
        ("exit 0", 0.0, "failed", "SystemExit: 0"),
        ("interrupt", 0.0, "failed", "KeyboardInterrupt"),
        ("cancel", 0.0, "failed", "CancelledError"),
        ("close 1", 1.0, "scored", ""),
        ("print after that", 1.0, "scored", ""),
        ("close 0 1 2", 1.0, "scored", ""),
        ("print after that, too", 1.0, "scored", ""),
        ("close_streams", 1.0, "scored", ""),
        ("print after all", 1.0, "scored", ""),
        ("close_all 0", 0.0, "failed", "its process ended with exit code 1"),
        ("fork", 1.0, "scored", ""),
        ("echo another", 0.0, "scored", ""),
        ("scribble", 0.0, "failed", "its process replied with something else"),
        ("read", 1.0, "scored", ""),
        ("crash", 0.0, "failed", "its process was ended by SIGSEGV"),
        ("print once more", 1.0, "scored", ""),
    ],
)
def test_every_answer_gets_a_verdict(worker: VerifierWorker, response: str, score: float, outcome: str, reason: str) -> None:
    verdict = worker.judge(ASKED, response)
    assert (verdict.score, verdict.outcome, verdict.reason) == (score, outcome, reason)


def test_a_process_that_died_between_two_answers_is_replaced(worker: VerifierWorker) -> None:
    assert worker.judge(ASKED, "print").score == 1.0
    assert worker._process is not None
    os.kill(worker._process.pid, signal.SIGKILL)
    worker._process.wait()
    assert worker.judge(ASKED, "print").score == 1.0


def test_an_answer_that_brings_its_process_down_later_costs_the_next_one_nothing(worker: VerifierWorker) -> None:
    assert worker.judge(ASKED, "leave 0.2").score == 1.0
    assert worker.judge(ASKED, "wait 0.5").score == 1.0


def test_a_verifier_that_closes_every_descriptor_and_waits_meets_the_wall_clock() -> None:
    worker = VerifierWorker(SPEC, Limits(wall_s=2.0))
    verdict = worker.judge(ASKED, "close_all 600")
    assert (verdict.outcome, verdict.reason) == ("limit", "took longer than reward.wall_limit_s=2")
    worker.close()


def test_signals_that_ask_a_run_to_save_do_not_end_a_verification(worker: VerifierWorker) -> None:
    assert worker.judge(ASKED, "print").score == 1.0
    assert worker._process is not None
    pid = worker._process.pid
    sent = [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT]
    threads = [threading.Timer(0.1 * place, os.kill, (pid, signum)) for place, signum in enumerate(sent, start=1)]
    for thread in threads:
        thread.start()
    assert worker.judge(ASKED, "wait 1.0").score == 1.0
    assert worker._process.pid == pid


def test_a_verifier_that_waits_meets_the_wall_clock_and_leaves_nothing_behind(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    worker = VerifierWorker(SPEC, Limits(wall_s=3.0))
    worker.start()
    verdict = worker.judge(Problem(PROMPT, {"pid_file": str(pid_file)}), "spawn")
    assert (verdict.outcome, verdict.reason) == ("limit", "took longer than reward.wall_limit_s=3")
    assert all_gone(int(pid_file.read_text())), "what the verifier started lives on"


def test_a_verifier_that_cannot_be_made_is_named() -> None:
    for factory, options, message in [
        (SPEC.factory, {"unmakeable": True}, "cannot be made: ValueError: the answer key is missing"),
        ("tests.tasks.no_such:make", {}, "cannot be made: ModuleNotFoundError: No module named"),
        ("tests.tasks.awkward_verifiers:no_such", {}, "cannot be made: AttributeError"),
    ]:
        pool = VerifierPool(VerifierSpec(factory, options, 0), LIMITS, 2)
        with pytest.raises(VerifierError, match=message) as raised:
            pool.start()
        assert factory in str(raised.value)
        pool.close()


def test_one_hanging_answer_does_not_hold_up_the_others() -> None:
    pool = VerifierPool(SPEC, Limits(cpu_s=60.0, wall_s=60.0), 2)
    try:
        pool.start()
        hanging = pool.submit(ASKED, "swallow")
        others = [pool.submit(ASKED, f"echo {'é' * (i % 2)}\n\0") for i in range(200)]
        assert [other.result(timeout=60).score for other in others] == [0.0, 1.0] * 100
        assert not hanging.done()
        pids = [worker._process.pid for worker in pool._workers if worker._process is not None]
        assert len(pids) == 2  # never more than asked for
    finally:
        started = time.monotonic()
        pool.close()
    assert time.monotonic() - started < 10
    assert all(gone(pid) for pid in pids)


def test_processes_die_with_their_parent_whatever_they_compute() -> None:
    program = f"""
from megatron_entropic.tasks import Problem
from tests.tasks.test_verification import SPEC, Limits, VerifierPool
pool = VerifierPool(SPEC, Limits(cpu_s=600.0, wall_s=600.0), 2)
pool.start()
pool.submit(Problem({PROMPT!r}), "compute")
pool.submit(Problem({PROMPT!r}), "print").result()
print(*(worker._process.pid for worker in pool._workers), flush=True)
import time; time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2
    parent.kill()
    parent.communicate()
    assert all_gone(*pids)
