r"""Mathematics from a file: problems with one known answer, which a response gives in its last \boxed{...}.

`task.options`: `path`, a JSON Lines file of prompts and answers (rows.py: fields of other names are recognised, or named by
`prompt_field` and `answer_field`; an answer is LaTeX or a number, or a text that ends in one), and `prompt_template`, in which
{prompt} is replaced (other braces are text). `test_fraction` (0) holds that fraction of the rows back from training; `evaluate` then
takes those (`split`: train, test or all).

What an answer may look like and still be right: math_answers/ and docs/rewards.md. The package math-verify is needed when the
task is made.
"""

import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from megatron_entropic.tasks.math_answers import boxed, unreadable
from megatron_entropic.tasks.math_checker import FACTORY, MathChecker
from megatron_entropic.tasks.options import fraction, refuse_unknown, text
from megatron_entropic.tasks.row_task import RowTask
from megatron_entropic.tasks.row_values import BadRowError
from megatron_entropic.tasks.rows import PLAIN_NUMBER, DataFile, read_rows
from megatron_entropic.tasks.task import Problem

TEMPLATE = "{prompt}\nPlease reason step by step, and put your final answer within \\boxed{}.\n"

OPTIONS = ("path", "prompt_template", "prompt_field", "answer_field", "split", "test_fraction")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
"""Commas that group digits, as GSM8K writes them: 1,234."""


class Math(RowTask):
    """The task (task.py says what a task promises)."""

    verifier: ClassVar[str] = FACTORY

    def __init__(self, file: DataFile, template: str, seed: int) -> None:
        super().__init__(file, template, seed)
        self._checker = MathChecker()

    def response_of(self, answer: str) -> str:
        """A response that gives `answer` as the task wants it given."""
        return rf"\boxed{{{answer}}}"

    def score(self, problem: Problem, response: str) -> float:
        """1.0 when the last box of `response` means the problem's answer; 0.0 for anything else, for no box, and at a limit.

        In a process of its own, one answer at a time; runs make several such processes (rollout/scoring.py).
        """
        answer = boxed(response)
        return 0.0 if answer is None else float(self._checker.same(str(problem.data["answer"]), answer))


def known_answer(text: str) -> str:
    r"""The final answer that the text of a data set's answer holds: what follows the last ####, else the last \boxed{...}, else all.

    Raises BadRowError when no answer could equal it.
    """
    _, marked, after = text.rpartition("####")
    inside = boxed(text)
    answer = _THOUSANDS.sub("", after.strip()) if marked else text if inside is None else inside
    if answer and not PLAIN_NUMBER.fullmatch(answer) and (why := unreadable(answer)):
        raise BadRowError(f"the answer {answer[:60]!r} {why}")
    return answer


def make_math(options: Mapping[str, Any], seed: int) -> Math:
    """The task from `task.options`. Raises ValueError naming the option, or the file and line, that is wrong."""
    if find_spec("math_verify") is None:
        raise ValueError("task.name=math needs the package math-verify: pip install 'math-verify[antlr4_13_2]'")
    refuse_unknown("math", options, OPTIONS)
    template = text(options, "prompt_template", TEMPLATE)
    if "{prompt}" not in template:
        raise ValueError(f"task.options.prompt_template={template!r}: must contain {{prompt}}")
    fields = {name: text(options, name, "") for name in ("prompt_field", "answer_field")}
    if not (path := text(options, "path", "")):
        raise ValueError("task.options.path: needed: a JSON Lines file of problems with their answers")
    task = Math(read_rows(Path(path), **fields, known_answer=known_answer), template, seed)
    task.take_split(text(options, "split", "train"), fraction(options, "test_fraction", 0.0))
    return task
