"""The decompose task: a pure stream of problems and an exact, total verifier."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_entropic.config import TaskConfig
from megatron_entropic.tasks import Problem, make_task

TASK = make_task(TaskConfig(name="decompose"), seed=0)
ASKED = Problem(prompt="347=", data={"total": 347})


@pytest.mark.parametrize("answer", ["0+347", "347+0", "100+247", "7+340"])
def test_right_answers(answer: str) -> None:
    assert TASK.score(ASKED, answer) == 1.0


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "+",
        "347",
        "347+",
        "+347",
        "100+246",
        "0100+247",
        "00+347",
        "-1+348",
        "+100+247",
        "100+247 ",
        " 100+247",
        "100 + 247",
        "100+247\n",
        "100+247=347",
        "100+200+47",
        "1_00+247",
        "100-247",
        "١٠٠+٢٤٧",
        "１００+247",
        "10²+247",
        "1e2+247",
        "100+247<pad>",
        "0x64+247",
    ],
)
def test_wrong_answers(answer: str) -> None:
    assert TASK.score(ASKED, answer) == 0.0


def test_huge_numbers_are_refused_at_once() -> None:
    assert TASK.score(ASKED, "9" * 10_000_000 + "+1") == 0.0
    assert TASK.score(ASKED, "0+" + "0" * 1_000_000 + "347") == 0.0


@given(st.text() | st.text("0123456789+- ٣\n", max_size=9))
def test_never_raises(text: str) -> None:
    assert TASK.score(ASKED, text) in (0.0, 1.0)


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(-2, 2))
def test_right_exactly_when_the_sum_is(a: int, b: int, off: int) -> None:
    total = max(0, a + b + off)
    assert TASK.score(Problem(f"{total}=", {"total": total}), f"{a}+{b}") == float(a + b == total)


def test_all_decompositions_of_a_small_number() -> None:
    texts = [f"{a}+{b}" for a in range(130) for b in range(130)]
    asked = Problem("123=", {"total": 123})
    assert sum(TASK.score(asked, text) for text in texts) == 124


def test_the_stream_depends_on_seed_and_index_alone() -> None:
    random.seed(1)
    forwards = [TASK.problem(i) for i in range(50)]
    random.seed(2)
    other = make_task(TaskConfig(name="decompose"), seed=0)
    assert [other.problem(i) for i in reversed(range(50))] == forwards[::-1]
    shifted = make_task(TaskConfig(name="decompose"), seed=1)
    assert [shifted.problem(i) for i in range(50)] != forwards
    assert [shifted.problem(i) for i in range(49)] != forwards[1:]


def test_the_stream_is_pinned() -> None:
    """A change here changes the data of every recorded run."""
    assert [TASK.problem(i).prompt for i in range(6)] == ["666=", "597=", "102=", "205=", "870=", "621="]


def test_the_stream_is_uniform_over_the_bounds() -> None:
    task = make_task(TaskConfig(name="decompose", options={"low": 3, "high": 12}), seed=5)
    totals = [task.problem(i).data["total"] for i in range(5000)]
    counts = [totals.count(n) for n in range(3, 13)]
    assert sum(counts) == 5000
    assert min(counts) > 400
    assert max(counts) < 600


def test_problems_survive_json() -> None:
    problem = TASK.problem(7)
    assert problem.prompt == f"{problem.data['total']}="
    read = Problem(problem.prompt, json.loads(json.dumps(dict(problem.data))))
    assert TASK.score(read, f"{problem.data['total']}+0") == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hgih": 5}, "task.options.hgih.*did you mean 'high'.*high, low"),
        ({"low": -1}, "task.options.low=-1"),
        ({"low": "1"}, "task.options.low='1'"),
        ({"high": True}, "task.options.high=True"),
        ({"high": 99}, "task.options.high=99.*from 100"),
        ({"high": 10**12}, "task.options.high"),
    ],
)
def test_bad_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_task(TaskConfig(name="decompose", options=options), seed=0)


def test_a_negative_index_is_refused() -> None:
    with pytest.raises(ValueError, match="-1"):
        TASK.problem(-1)
