"""The Reasoning Gym adapter: seeded, recoverable from JSON, safe against what a policy may write."""

import inspect
import json
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reasoning_gym.factory import DATASETS

from megatron_entropic.config import TaskConfig
from megatron_entropic.tasks import Problem, Task, make_task
from megatron_entropic.tasks.reasoning_gym import EXECUTES_ANSWERS, NOT_REPEATABLE, extract_answer

ODD_TEXTS = [
    "",
    "\0",
    "é" * 50,
    "9" * 5000,
    "[[[[",
    "{}",
    "nan",
    "inf",
    "-1e400",
    "1/0",
    "null",
    "[1, 'a']",
    "(" * 3000,
    "½",
    "a,b;c\n" * 40,
    "0x1",
    "🤖",
]
# One of each kind of verifier; making all takes a minute.
SOME = [
    "basic_arithmetic",
    "chain_sum",
    "decimal_arithmetic",
    "gsm_symbolic",
    "knights_knaves",
    "rubiks_cube",
    "sudoku",
    "boxnet",
]


def task(dataset: str = "chain_sum", seed: int = 0, **options: object) -> Task:
    return make_task(TaskConfig(name="reasoning_gym", options={"dataset": dataset, **options}), seed)


def answer_of(problem: Problem) -> str:
    return str(eval(problem.prompt.split(":")[1].split("=")[0]))  # our own arithmetic: "1 + 2 - 3"


def test_the_right_answer_scores_one_and_others_do_not() -> None:
    sums = task()
    for index in (0, 5, 1023, 1024, 5000):
        problem = sums.problem(index)
        right = answer_of(problem)
        assert sums.score(problem, right) == 1.0
        assert sums.score(problem, f" {right}\n") == 1.0
        assert sums.score(problem, f"so <answer>1</answer> no, <answer> {right} </answer> it is") == 1.0
        assert sums.score(problem, str(int(right) + 1)) < 1.0
        assert sums.score(problem, "") == 0.0


def test_problems_survive_json() -> None:
    problem = task().problem(1030)
    read = Problem(problem.prompt, json.loads(json.dumps(dict(problem.data))))
    assert task().score(read, answer_of(problem)) == 1.0


def test_the_stream_depends_on_seed_and_index_alone() -> None:
    first = [task().problem(i).prompt for i in range(20)]
    again = task()
    assert [again.problem(i).prompt for i in reversed(range(20))] == first[::-1]
    # The package's own seeding would give seed 1 the same problems, one earlier.
    other = [task(seed=1).problem(i).prompt for i in range(20)]
    assert not set(first) & set(other)


def test_parameters_and_template_reach_the_dataset() -> None:
    sums = task(min_terms=2, max_terms=2, min_digits=1, max_digits=1, prompt_template="Q {x} {question}!")
    assert re.fullmatch(r"Q \{x\} State .*: \d [+-] \d =!", sums.problem(3).prompt)
    assert task().problem(3).prompt.endswith("=\n")


@pytest.mark.parametrize("dataset", SOME)
def test_odd_texts_score_within_bounds(dataset: str) -> None:
    odd = task(dataset)
    problem = odd.problem(0)
    for text in ODD_TEXTS:
        assert 0.0 <= odd.score(problem, text) <= 1.0, text


@pytest.mark.slow
@pytest.mark.parametrize("dataset", sorted(set(DATASETS) - EXECUTES_ANSWERS - NOT_REPEATABLE))
def test_odd_texts_score_within_bounds_everywhere(dataset: str) -> None:
    test_odd_texts_score_within_bounds(dataset)


@given(st.text() | st.from_regex(r"<answer>[-\d. ]*(</answer>)?"))
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_never_raises(text: str) -> None:
    assert 0.0 <= SUMS.score(PROBLEM, text) <= 1.0


SUMS = task()
PROBLEM = SUMS.problem(0)


def test_an_endless_answer_scores_zero() -> None:
    assert SUMS.score(PROBLEM, answer_of(PROBLEM) + " " * 5 + "x" * 20_000) == 0.0


def test_what_the_package_pays_for_anything_is_judged_by_us() -> None:
    halting = task("game_of_life_halting")
    answers = [str(halting._entry(index)["answer"]) for index in range(8)]  # type: ignore[attr-defined]
    assert set(answers) == {"True", "False"}
    for index, right in enumerate(answers):
        problem = halting.problem(index)
        assert halting.score(problem, f"so <answer>{right}</answer>") == 1.0
        assert halting.score(problem, right.lower()) == 1.0
        for wrong in ("", "x", "0", "not True", "True False", "False" if right == "True" else "True"):
            assert halting.score(problem, wrong) == 0.0
    sums = task("complex_arithmetic")
    for answer in ("nan", "NaN", " nan ", "nan+nanj", "nanj", "(nan)", "1+nanj", "<answer>nan</answer>"):
        assert sums.score(sums.problem(0), answer) == 0.0


def test_a_problem_that_this_process_does_not_make_is_an_error() -> None:
    with pytest.raises(ValueError, match="reasoning_gym/chain_sum: problem 0 is another one in the verifier's process"):
        SUMS.score(Problem("another question", {"dataset": "chain_sum", "index": 0}), "1")


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("5", "5"),
        (" <answer>5</answer>", "5"),
        ("<answer>5", "<answer>5"),
        ("5</answer>", "5</answer>"),
        ("<answer>1</answer><answer>2</answer>x", "2"),
        ("<answer></answer>", ""),
    ],
)
def test_extraction(response: str, answer: str) -> None:
    assert extract_answer(response) == answer


def test_no_verifier_in_use_executes_its_answer() -> None:
    """A new release of the package must not bring one in unseen."""
    executes = {
        name
        for name, (dataset, _) in DATASETS.items()
        if re.search(r"\b(eval|exec|parse_expr|sympify|Fraction)\((?!entry|metadata|oracle)", inspect.getsource(dataset.score_answer))
    }
    assert executes <= EXECUTES_ANSWERS
    assert set(DATASETS) >= EXECUTES_ANSWERS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "chain_sums"}, "chain_sums.*did you mean 'chain_sum'"),
        ({"dataset": 3}, "task.options.dataset=3.*text"),
        ({"dataset": "simple_integration"}, "simple_integration.*executes"),
        ({"dataset": "ransom_note"}, "ransom_note.*not the same in every process"),
        ({"min_term": 3}, "task.options.min_term:.*did you mean 'min_terms'"),
        ({"seed": 3}, "task.options.seed"),
        ({"size": 3}, "task.options.size"),
        ({"min_terms": 9, "max_terms": 2}, "chain_sum.*max_terms must be >= min_terms"),
        ({"prompt_template": "hello"}, "prompt_template='hello'.*question"),
    ],
)
def test_bad_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_task(TaskConfig(name="reasoning_gym", options=options), seed=0)
