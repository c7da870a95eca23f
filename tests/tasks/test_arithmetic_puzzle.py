"""Countdown and 24: each number once, exact value, nothing executed, any text decided at once."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_entropic.config import TaskConfig
from megatron_entropic.tasks import make_task
from megatron_entropic.tasks.arithmetic_puzzle import solves

NUMBERS = [3, 8, 8, 3]


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("8/(3-8/3)", True),
        (" 8 / ( 3 - 8 / 3 ) ", True),
        ("(8)/((3)-(8/3))", True),
        ("-8/(8/3-3)", True),
        ("8/(3-8/3)+3-3", False),
        ("8*3", False),
        ("8*3+8-8", False),
        ("24", False),
        ("8/(3-2.6666666666666665)", False),
        ("8/(3-8/3) = 24", False),
        ("8//(3-8/3)", False),
        ("8**3-8-3", False),
        ("8/(3-8/3", False),
        ("8/(3-8/3))", False),
        ("8 8 3 3", False),
        ("88/(33)", False),
        ("8/(8-3-3-8/8)", False),
        ("８/(3-8/3)", False),
        ("eval('8/(3-8/3)')", False),
        ("__import__('os')", False),
        ("8/(3-8/3)#", False),
        ("8/(3-8/3)\n#3", False),
        ("", False),
        ("()", False),
    ],
)
def test_answers(answer: str, right: bool) -> None:
    assert solves(answer, NUMBERS, 24) == right


def test_only_the_operators_that_are_allowed() -> None:
    assert solves("2*3+4", [2, 3, 4], 10)
    assert not solves("2*3+4", [2, 3, 4], 10, ("+", "-"))
    assert solves("3+4+2", [2, 3, 4], 9, ("+",))
    assert not solves("-2+3+4", [2, 3, 4], 5, ("+",))


@pytest.mark.parametrize("text", ["(" * 9000, "-" * 9000, "9" * 9000, "1/" * 4000 + "0", "9**9**9**9", "((((3)))" * 1000, "1/0", "\0"])
def test_hostile_answers_are_wrong_at_once(text: str) -> None:
    started = time.process_time()
    assert not solves(text, NUMBERS, 24)
    assert time.process_time() - started < 0.5


@given(st.text(alphabet="0123456789+-*/() .e", max_size=40) | st.text())
def test_any_text_gets_an_answer(text: str) -> None:
    assert solves(text, NUMBERS, 24) in (True, False)


@given(st.lists(st.integers(1, 20), min_size=2, max_size=6), st.data())
def test_every_expression_of_the_numbers_is_read_as_python_reads_it(numbers: list[int], data: st.DataObject) -> None:
    parts = [str(number) for number in numbers]
    while len(parts) > 1:
        place = data.draw(st.integers(0, len(parts) - 2))
        sign = data.draw(st.sampled_from("+-*"))
        parts[place : place + 2] = [f"({parts[place]}{sign}{parts[place + 1]})"]
    value = eval(parts[0])  # our own arithmetic
    assert solves(parts[0], numbers, value)
    assert not solves(parts[0], numbers, value + 1)
    assert not solves(parts[0], [*numbers[1:], numbers[0] + 1], value)


@settings(max_examples=20)
@given(st.sampled_from(["countdown", "puzzle24"]), st.integers(0, 60))
def test_known_answers_of_the_datasets_are_right(dataset: str, index: int) -> None:
    task = TASKS[dataset]
    problem = task.problem(index)
    known = str(task._entry(index)["answer"])  # type: ignore[attr-defined]
    assert task.score(problem, known) == 1.0
    assert task.score(problem, f"<answer>{known}</answer>") == 1.0
    assert task.score(problem, f"{known}+0") == 0.0
    assert task.score(problem, str(index)) == 0.0


TASKS = {name: make_task(TaskConfig(name="reasoning_gym", options={"dataset": name}), 3) for name in ("countdown", "puzzle24")}
