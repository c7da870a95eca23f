"""Programs against the forms of tests that data sets have, in the real sandbox; answers that cheat, and answers that attack."""

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_entropic.tasks.row_values import BadRowError
from megatron_entropic.tasks.task import Problem
from megatron_entropic.tasks.verification import Limits, VerifierSpec, VerifierWorker
from megatron_entropic.tasks.verifiers import RowVerifier, make_verifier
from megatron_entropic.tasks.verifiers.code import program_of
from megatron_entropic.tasks.verifiers.code_tests import same_output

ADDS = "a, b = map(int, input().split())\nprint(a + b)"
PAIRS = json.dumps({"inputs": ["1 2\n", "5 6\n"], "outputs": ["3\n", "11\n"]})
CALLS = json.dumps({"fn_name": "pair", "inputs": [[1, [2]], [[], {}]], "outputs": [[[1, [2]]], [[[], {}]]]})
LEETCODE = json.dumps({"fn_name": "twice", "inputs": ['"ab"\n2', '"x"\n0'], "outputs": ['"abab"', '""']})
LIVE = [{"input": "1 2", "output": "3", "testtype": "stdin"}, {"input": "2 2", "output": "4", "testtype": "stdin"}]
LIVE_CALL = [{"input": "[1, 2]", "output": "3", "testtype": "functional"}]
MBPP = ["assert total((1, 2)) == 3", "assert {1: total([])} == {1: 0}", "assert 'x' == name(total)"]
HUMAN_EVAL = "def check(candidate):\n    assert candidate(2) == 4\n    assert abs(candidate(0.5) - 0.25) < 1e-6\n"
MAIN = "import sys\ndef main():\n    print(sum(map(int, sys.stdin.read().split())), end='')\nif __name__ == '__main__': main(); exit(0)"
PRELUDE_AND_FUTURE = "from __future__ import annotations\ndef twice(s: List[str], n): return s * n if pow(2, 3, 5) == 3 else 0"
SUMS = "def total(x): return sum(x)\ndef name(f): return 'x'"
SAME = "class Same:\n    def __eq__(self, other): return True\n    def __bool__(self): return True\n"
THREE = "class Three(int):\n    def __eq__(self, other): return True\n    __hash__ = int.__hash__\n"


def judged(text: str, program: str, row: dict[str, Any] | None = None, **options: Any) -> float:
    verifier: RowVerifier = make_verifier("code", options)
    score = verifier.score(verifier.known_answer(text, row or {}), {}, f"I think:\n```python\n{program}\n```\nDone.")
    assert isinstance(score, float)
    return score


@pytest.mark.parametrize(
    ("text", "row", "right", "wrong"),
    [
        (PAIRS, {}, ADDS, "print(3)"),
        (PAIRS, {}, MAIN, "main()"),
        (CALLS, {}, "def pair(a, b):\n    return (a, b)", "def pair(a, b):\n    return [b, a]"),
        (LEETCODE, {}, "class Solution:\n    def twice(self, s: str, n: int) -> str: return s * n", "def twice(s, n): return s"),
        (LEETCODE, {}, PRELUDE_AND_FUTURE, "twice = 3"),
        (json.dumps(LIVE), {}, ADDS, ADDS.replace("+", "*")),
        (json.dumps(LIVE_CALL), {"metadata": '{"func_name": "total"}'}, "def total(x): return sum(x)", "def total(x): return len(x)"),
        (json.dumps(MBPP), {}, SUMS, SUMS.replace("sum(x)", "0")),
        ("\n".join(MBPP), {}, SUMS, "import os; os._exit(0)"),
        (HUMAN_EVAL, {"entry_point": "square"}, "def square(x): return x ** 2", "def square(x): return x * 2"),
        ("import math\nassert math.isclose(half(1), 0.5)", {}, "def half(x): return x / 2", "def half(x): return x"),
    ],
)  # fmt: skip
def test_forms_of_tests(text: str, row: dict[str, Any], right: str, wrong: str) -> None:
    assert judged(text, right, row) == 1.0
    assert judged(text, wrong, row) == 0.0


def test_partial_scores_and_tolerance() -> None:
    assert judged(PAIRS, "print(3)", partial=True) == 0.5
    third = json.dumps({"inputs": [""], "outputs": ["0.3333 x"]})
    assert judged(third, "print(1 / 3, 'x')") == 0.0
    assert judged(third, "print(1 / 3, 'x')", tolerance=1e-3) == 1.0
    assert judged(json.dumps(["assert third() == 0.333"]), "def third(): return 1 / 3", tolerance=1e-3) == 1.0
    assert judged(json.dumps({"inputs": [""], "outputs": ["1"]}), "import numpy\nprint(int(numpy.ones(1)[0]))") == 0.0
    assert judged(json.dumps({"inputs": [""], "outputs": ["1"]}), "import numpy\nprint(int(numpy.ones(1)[0]))", packages=True) == 1.0


def test_outputs_are_the_same_but_for_space_at_ends_and_the_way_of_numbers() -> None:
    assert same_output("1 2 \n3\n\n", "1 2\n3", 0)
    assert same_output("1.0\n", "1", 0)
    assert not same_output("1\n\n2", "1\n2", 0)
    assert not same_output("12", "1 2", 0)
    assert not same_output("nan", "NaN", 1.0)
    assert not same_output("1e400", "1", 0.1)


@pytest.mark.parametrize(
    "cheat",
    [
        f"{SAME}def total(x): return Same()\nname = total",
        f"{THREE}def total(x): return Three(1)\ndef name(f): return 'x'",
        "import os, sys\ndef total(x): os.write(3, b'3'); os._exit(0)\nname = total",
        "import builtins\nbuiltins.AssertionError = None\ndef total(x): raise SystemExit(0)\nname = total",
        "import sys; sys.exit(0)",
    ],
)
def test_what_only_claims_to_be_equal_is_not(cheat: str) -> None:
    assert judged("\n".join(MBPP), cheat) == 0.0


@pytest.mark.parametrize(
    "attack",
    [
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
        "import time; time.sleep(1000)",
        "while True: pass",
        "while True: print('x' * 10**6)",
        "x = [0] * 10**10",
        "open('x', 'wb').write(b'x' * 10**9)",
        "import socket; socket.create_connection(('127.0.0.1', 22))",
        "print(open('/etc/shadow').read())",
        "import os; os.kill(os.getppid(), 9); os.kill(1, 9); os.kill(-1, 9)",
        "def f(): f()\nimport sys; sys.setrecursionlimit(10**9); f()",
        "(" * 100_000,
        "\0",
        "print(",
        "",
    ],
)
def test_attacks_are_ended_and_scored(attack: str, verifier: RowVerifier) -> None:
    tests = verifier.known_answer(PAIRS, {})
    assert verifier.score(tests, {}, f"```python\n{attack}\n```") == 0.0
    assert verifier.score(tests, {}, f"```python\n{ADDS}\n```") == 1.0


@pytest.fixture(scope="module")
def verifier() -> RowVerifier:
    return make_verifier("code", {"cpu_limit_s": 1, "wall_limit_s": 2.5, "memory_mb": 256})


@pytest.mark.parametrize(
    ("text", "row", "message"),
    [
        ("[]", {}, "neither pairs of inputs and outputs nor Python with an assert"),
        ("{}", {}, "no lists inputs and outputs of one length"),
        ('{"inputs": ["1"], "outputs": []}', {}, "no lists inputs and outputs of one length"),
        ('{"inputs": [1], "outputs": ["1"]}', {}, "is int, not text"),
        ('{"inputs": ["["], "outputs": ["1"], "fn_name": "f"}', {}, "a test of f is not JSON"),
        ('{"inputs": [3], "outputs": [4], "fn_name": "f"}', {}, "no list of arguments"),
        (json.dumps(LIVE_CALL), {}, "needs the field metadata with func_name"),
        (HUMAN_EVAL, {}, r"a field entry_point for check\(candidate\)"),
        ("assert (", {}, "neither JSON nor Python"),
        ("print(1)", {}, "nor Python with an assert"),
        (json.dumps({"inputs": ["x"] * 1001, "outputs": ["x"] * 1001}), {}, "1001 tests; at most 1000"),
    ],
)
def test_tests_that_cannot_be_read_are_refused(text: str, row: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRowError, match=message):
        make_verifier("code", {}).known_answer(text, row)


def test_the_program_of_a_response() -> None:
    assert program_of("```python\n1\n```\n```py\n2\n```\n```\n3\n```") == "2\n"
    assert program_of("```\n3\n```\n```bash\nls\n```") == "3\n"
    assert program_of("<think>```python\n1\n```</think>print(2)") == "print(2)"
    assert program_of("```python\nprint(1)") == "```python\nprint(1)"  # never closed: cut off


class OneRow:
    """A task's verifier, as a run's processes make it."""

    def __init__(self, options: Any, seed: int) -> None:
        self.verifier = make_verifier("code", options)

    def score(self, problem: Problem, response: str) -> Any:
        return self.verifier.score(problem.data["answer"], {}, response)


def test_within_a_runs_process_the_sandbox_ends_with_it(tmp_path: Path) -> None:
    tests = make_verifier("code", {}).known_answer(PAIRS, {})
    worker = VerifierWorker(VerifierSpec(f"{__name__}:OneRow", {"wall_limit_s": 100, "total_limit_s": 100}, 0), Limits(3.0, 4.0))
    try:
        assert worker.judge(Problem("", {"answer": tests}), ADDS).score == 1.0
        verdict = worker.judge(Problem("", {"answer": tests}), "import time; time.sleep(1000)")
        assert (verdict.outcome, verdict.reason) == ("limit", "took longer than reward.wall_limit_s=4")
        assert worker.judge(Problem("", {"answer": tests}), ADDS).score == 1.0
    finally:
        worker.close()
