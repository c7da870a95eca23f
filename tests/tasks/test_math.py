"""Mathematics from a file: a seeded walk through it, answers in boxes, and a checker that nothing a policy writes can hold up."""

import json
import time
from pathlib import Path

import pytest

from megatron_entropic.config import TaskConfig
from megatron_entropic.tasks import Problem, Task, make_task
from megatron_entropic.tasks.math_checker import MathChecker

LINES = [
    ("What is one half?", "\\frac{1}{2}"),
    ("2+2?", "4"),
    ("Solve x^2=4", "\\{-2, 2\\}"),
    ("pi?", "$\\pi$"),
    ("ten percent", "10\\%"),
]


def write(path: Path, lines: list[tuple[str, str]] = LINES) -> Path:
    path.write_text("".join(json.dumps({"prompt": prompt, "answer": answer, "source": "x"}) + "\n" for prompt, answer in lines))
    return path


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    pytest.importorskip("math_verify")
    return make_task(TaskConfig(name="math", options={"path": str(write(tmp_path_factory.mktemp("math") / "problems.jsonl"))}), 3)


def asked(answer: str) -> Problem:
    return Problem("?", {"answer": answer, "line": 7})


@pytest.mark.parametrize(
    ("known", "response", "score"),
    [
        ("\\frac{1}{2}", "\\boxed{0.5}", 1.0),
        ("\\frac{1}{2}", "\\boxed{\\dfrac12}", 1.0),
        ("\\frac{1}{2}", "\\boxed{\\frac{2}{4}}", 1.0),
        ("\\frac{1}{2}", "\\boxed{2}", 0.0),
        ("4", "\\boxed{ 4 }", 1.0),
        ("4", "4", 0.0),
        ("4", "\\boxed{4} or \\boxed{5}", 0.0),
        ("\\{-2, 2\\}", "\\boxed{\\{2,-2\\}}", 1.0),
        ("x^2+1", "\\boxed{1+x^2}", 1.0),
        ("(1,2)", "\\boxed{(2,1)}", 0.0),
        ("4", "\\boxed{__import__('os').system('true')}", 0.0),
        ("4", "\\boxed{\0\ud800}", 0.0),
    ],
)
def test_answers_that_mean_the_same_are_right(task: Task, known: str, response: str, score: float) -> None:
    assert task.score(asked(known), response) == score


def test_two_answers_are_compared_without_a_task() -> None:
    pytest.importorskip("math_verify")
    checker = MathChecker()
    try:
        assert checker.same("\\frac{1}{2}", " 0.5 ")
        assert not checker.same("\\frac{1}{2}", "0.5} or \\boxed{2")
        assert not checker.same("}", "}")
        assert not checker.same("4", "9^{9^{9^{9}}}")
    finally:
        checker.close()


@pytest.mark.slow
def test_an_answer_that_computes_for_ever_is_wrong_and_holds_nothing_up(task: Task) -> None:
    started = time.monotonic()
    assert task.score(asked("4"), "\\boxed{9^{9^{9^{9}}}}") == 0.0
    assert task.score(asked("4"), "\\boxed{2^{99999999999} \\bmod 7}") == 0.0
    assert time.monotonic() - started < 40
    assert task.score(asked("\\frac{1}{2}"), "\\boxed{\\frac{3}{6}}") == 1.0


def test_every_epoch_is_the_whole_file_in_its_own_order(tmp_path: Path) -> None:
    pytest.importorskip("math_verify")
    lines = [(f"prompt {i}", str(i)) for i in range(50)]
    path = str(write(tmp_path / "problems.jsonl", lines))
    first, again, other = (
        make_task(TaskConfig(name="math", options={"path": path, "prompt_template": "{prompt} {}"}), s) for s in (0, 0, 1)
    )
    order = [first.problem(i).data["line"] for i in range(100)]
    assert sorted(order[:50]) == sorted(order[50:]) == list(range(1, 51))
    assert order[:50] != order[50:]
    assert order == [again.problem(i).data["line"] for i in range(100)]
    assert order != [other.problem(i).data["line"] for i in range(100)]
    problem = first.problem(3)
    assert problem.prompt == f"prompt {problem.data['answer']} {{}}"
    assert json.loads(json.dumps(dict(problem.data))) == problem.data


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (None, {}, "no such file"),
        ('{"prompt": "a", "answer": "1"}\n', {"prompt_template": "no"}, "must contain {prompt}"),
        ('{"prompt": "a", "answer": "1"}\n', {"pth": "x"}, "task.options.pth: task 'math' has no such option; did you mean 'path'?"),
    ],
)
def test_bad_files_and_options_are_named(tmp_path: Path, content: str | None, options: dict[str, str], message: str) -> None:
    path = tmp_path / "problems.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=r"problems\.jsonl|task\.options") as raised:
        make_task(TaskConfig(name="math", options={"path": str(path), **options}), 0)
    assert message in str(raised.value)


@pytest.mark.parametrize("answer", ["}", "$", "-", "\\boxed{}", "\\frac{1}{2"])
def test_a_known_answer_that_cannot_be_read_is_an_error_of_the_file(tmp_path: Path, answer: str) -> None:
    path = write(tmp_path / "problems.jsonl", [("1+1?", "2"), ("How much?", answer)])
    with pytest.raises(ValueError, match=r"problems\.jsonl: 1 of 2 rows cannot be used: line 2: the answer .* says nothing"):
        make_task(TaskConfig(name="math", options={"path": str(path)}), 0)
