"""The addition task: a pure stream of problems and an exact, total verifier with one right answer."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_entropic.config import TaskConfig
from megatron_entropic.tasks import Problem, make_task
from megatron_entropic.tasks.addition import Addition

TASK = make_task(TaskConfig(name="addition"), seed=0)
ASKED = Problem(prompt="37+58=", data={"total": 95})


def test_the_right_answer() -> None:
    assert TASK.score(ASKED, "95") == 1.0


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "9",
        "94",
        "96",
        "59",
        "95 ",
        " 95",
        "95\n",
        "095",
        "+95",
        "-95",
        "95.0",
        "9_5",
        "95=",
        "95<pad>",
        "37+58",
        "0x5f",
        "٩٥",
        "９５",
    ],
)
def test_wrong_answers(answer: str) -> None:
    assert TASK.score(ASKED, answer) == 0.0


def test_huge_numbers_are_refused_at_once() -> None:
    assert TASK.score(ASKED, "9" * 10_000_000) == 0.0
    assert TASK.score(ASKED, "0" * 1_000_000 + "95") == 0.0


def test_one_answer_is_right() -> None:
    assert [text for text in map(str, range(10_000)) if TASK.score(ASKED, text) == 1.0] == ["95"]


@given(st.text() | st.text("0123456789+- ٣\n", max_size=4))
def test_never_raises(text: str) -> None:
    assert TASK.score(ASKED, text) == float(text == "95")


def test_prompt_and_sum_belong_together() -> None:
    for problem in map(TASK.problem, range(300)):
        first, second = map(int, problem.prompt.removesuffix("=").split("+"))
        assert 10 <= first <= 99
        assert 10 <= second <= 99
        assert problem.data == {"total": first + second}
        assert TASK.score(problem, str(first + second)) == 1.0


def test_the_stream_depends_on_seed_and_index_alone() -> None:
    random.seed(1)
    forwards = [TASK.problem(i) for i in range(50)]
    random.seed(2)
    other = make_task(TaskConfig(name="addition"), seed=0)
    assert [other.problem(i) for i in reversed(range(50))] == forwards[::-1]
    shifted = make_task(TaskConfig(name="addition"), seed=1)
    assert [shifted.problem(i) for i in range(50)] != forwards
    assert [shifted.problem(i) for i in range(49)] != forwards[1:]


def test_the_stream_is_pinned() -> None:
    """A change here changes the data of every recorded run."""
    assert [TASK.problem(i).prompt for i in range(6)] == ["83+58=", "29+74=", "25+48=", "31+63=", "67+56=", "48+20="]


def test_the_operands_are_uniform_and_independent() -> None:
    task = make_task(TaskConfig(name="addition", options={"low": 3, "high": 5}), seed=5)
    prompts = [task.problem(i).prompt for i in range(9000)]
    counts = {f"{a}+{b}=": prompts.count(f"{a}+{b}=") for a in (3, 4, 5) for b in (3, 4, 5)}
    assert sum(counts.values()) == 9000
    assert min(counts.values()) > 850
    assert max(counts.values()) < 1150


def test_problems_survive_json() -> None:
    problem = TASK.problem(7)
    read = Problem(problem.prompt, json.loads(json.dumps(dict(problem.data))))
    assert TASK.score(read, str(problem.data["total"])) == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hgih": 5}, "task.options.hgih.*did you mean 'high'.*answer, high, low, prompt_template"),
        ({"low": -1}, "task.options.low=-1"),
        ({"low": "1"}, "task.options.low='1'"),
        ({"high": True}, "task.options.high=True"),
        ({"high": 9}, "task.options.high=9.*from 10"),
        ({"high": 10**12}, "task.options.high"),
        ({"prompt_template": "{first} and?"}, "task.options.prompt_template='{first} and.'.*must contain {second}"),
        ({"prompt_template": 5}, "task.options.prompt_template=5"),
        ({"answer": "lsat"}, "task.options.answer='lsat'.*whole, last"),
    ],
)
def test_bad_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_task(TaskConfig(name="addition", options=options), seed=0)


def test_bad_bounds_are_refused_without_the_factory_too() -> None:
    with pytest.raises(ValueError, match="low=5, high=4"):
        Addition(seed=0, low=5, high=4)


def test_a_negative_index_is_refused() -> None:
    with pytest.raises(ValueError, match="-1"):
        TASK.problem(-1)


TALKING = make_task(
    TaskConfig(name="addition", options={"low": 1, "high": 30, "prompt_template": "What is {first} + {second}? {n}", "answer": "last"}),
    seed=0,
)


def test_a_template_words_the_same_problems() -> None:
    """Braces that are no operand are text."""
    plain = make_task(TaskConfig(name="addition", options={"low": 1, "high": 30}), seed=0)
    for index in range(50):
        first, second = plain.problem(index).prompt.removesuffix("=").split("+")
        assert TALKING.problem(index) == Problem(f"What is {first} + {second}? {{n}}", plain.problem(index).data)


@pytest.mark.parametrize(
    "answer",
    ["95", "37 + 58 = 95.", "**95**", "$37+58=95$", r"\boxed{95}", "95\n", "It is 95, my friend!", "answer:95", "(95)", "95%", "x=95"],
)
def test_the_last_number_counts(answer: str) -> None:
    assert TALKING.score(ASKED, answer) == 1.0


NOT_95 = ["", "ninety-five", "95 or 96", "37 + 58", "-95", "\u221295", "37-95", "1.95", "95.5", "95/2", "1,095", "095", "x95", "95th"]
NOT_95 += ["9 5", "1e95", "2^95", "95³", "95３", "３95", "٩٥", "９５", "95 ٣", "95 ²", "9_95_9 1"]


@pytest.mark.parametrize("answer", NOT_95)
def test_another_last_number_is_wrong(answer: str) -> None:
    assert TALKING.score(ASKED, answer) == 0.0


@given(st.text() | st.text("0123456789+-.,/^ x_٣²\n", max_size=12), st.integers(0, 60))
def test_a_sum_after_any_text_is_right(text: str, total: int) -> None:
    problem = Problem("", {"total": total})
    assert TALKING.score(problem, text) in (0.0, 1.0)
    assert TALKING.score(problem, f"{text} = {total}.") == 1.0
    assert TALKING.score(problem, f"{text} {total} = {total + 1}") == 0.0


@pytest.mark.parametrize("part", ["9", "9.", "-", "9-", "a.", "9 ", ".,/^", "²"])
def test_a_long_answer_is_read_at_once(part: str) -> None:
    assert TALKING.score(ASKED, part * 1_000_000) == 0.0
