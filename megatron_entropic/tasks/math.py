r"""Mathematics from a file: problems with one known answer, which a response gives in its last \boxed{...}.

`task.options`: `path`, a JSON Lines file of prompts and answers (rows.py: fields of other names are recognised, or named by
`prompt_field` and `answer_field`; an answer is LaTeX or a number, or a text that ends in one), and `prompt_template`, in which
{prompt} is replaced (other braces are text). `test_fraction` (0) holds that share of the rows back from training; `evaluate` then
takes those (`split`: train, test or all).

An answer that is the known one letter for letter (but for spaces and $) is right; whether another means the same is for
math-verify to say, in a process of its own (math_checker.py): \frac12 is 0.5. The package is needed when the task is made.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from megatron_entropic.tasks.math_checker import MathChecker
from megatron_entropic.tasks.options import fraction, refuse_unknown, text
from megatron_entropic.tasks.row_task import RowTask
from megatron_entropic.tasks.rows import DataFile, read_rows
from megatron_entropic.tasks.task import Problem

TEMPLATE = "{prompt}\nPlease reason step by step, and put your final answer within \\boxed{}.\n"

OPTIONS = ("path", "prompt_template", "prompt_field", "answer_field", "split", "test_fraction")
_LONGEST_ANSWER = 1000
"""Characters; a longer answer scores 0."""
_BOX = "\\boxed{"
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
"""Commas that group digits, as GSM8K writes them: 1,234."""


class Math(RowTask):
    """The task (task.py says what a task promises)."""

    def __init__(self, file: DataFile, template: str, seed: int) -> None:
        super().__init__(file, template, seed)
        self._checker = MathChecker()
        self._means_the_same = lru_cache(maxsize=100_000)(self._checker.same)

    def response_of(self, answer: str) -> str:
        """A response that gives `answer` as the task wants it given."""
        return f"{_BOX}{answer}}}"

    def score(self, problem: Problem, response: str) -> float:
        """1.0 when the last \\boxed{...} of `response` means the problem's answer; 0.0 for anything else, and for no box.

        Raises ValueError naming file and line when it is the known answer that math-verify cannot read.
        """
        answer, known = boxed(response), str(problem.data["answer"])
        if answer is None or len(answer) > _LONGEST_ANSWER:
            return 0.0
        if _plain(answer) == _plain(known):
            return 1.0
        same = self._means_the_same(known, answer)
        if same is None:
            raise ValueError(f"{self.file.path}, line {problem.data['line']}: math-verify cannot read the answer {known!r}")
        return float(same)


def boxed(response: str) -> str | None:
    r"""What is inside the last \boxed{...}, its braces balanced; None when there is none. Linear in the text's length."""
    start = response.rfind(_BOX)
    if start < 0:
        return None
    start, depth = start + len(_BOX), 1
    for place in range(start, len(response)):
        depth += {"{": 1, "}": -1}.get(response[place], 0)
        if depth == 0:
            return response[start:place]
    return None


def known_answer(text: str) -> str:
    r"""The final answer that the text of a data set's answer holds: what follows the last ####, else the last \boxed{...}, else all."""
    _, marked, after = text.rpartition("####")
    if marked:
        return _THOUSANDS.sub("", after.strip())
    inside = boxed(text)
    return text if inside is None else inside


def _plain(answer: str) -> str:
    return "".join(answer.replace("$", "").split())


def make_math(options: Mapping[str, Any], seed: int) -> Math:
    """The task from `task.options`. Raises ValueError naming the option, or the file and line, that is wrong."""
    refuse_unknown("math", options, OPTIONS)
    template = text(options, "prompt_template", TEMPLATE)
    if "{prompt}" not in template:
        raise ValueError(f"task.options.prompt_template={template!r}: must contain {{prompt}}")
    fields = {name: text(options, name, "") for name in ("prompt_field", "answer_field")}
    if not (path := text(options, "path", "")):
        raise ValueError("task.options.path: needed: a JSON Lines file of problems with their answers")
    task = Math(read_rows(Path(path), **fields, known_answer=known_answer), template, seed)
    task.take_split(text(options, "split", "train"), fraction(options, "test_fraction", 0.0))
    task._checker.start()
    return task
