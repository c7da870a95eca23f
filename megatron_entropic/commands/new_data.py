"""What `megatron-entropic new` finds in a data file, and how the recipe it writes names that file. The one place that knows which
task reads it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_entropic.config.data import DATA_TASK, DataSource
from megatron_entropic.rollout.prompt_encoder import PromptEncoder
from megatron_entropic.tasks.math import TEMPLATE
from megatron_entropic.tasks.row_values import BadRowError
from megatron_entropic.tasks.task import Problem

if TYPE_CHECKING:  # what reads data imports numpy, which the other commands do without
    from megatron_entropic.tasks.data import DataTask

MEASURED_ROWS = 2000
"""Rows that are read and whose tokens are counted; of more, evenly spread ones. A run looks at more of them before it starts."""
_SHOWN = 5
"""Bad rows that an error shows."""
ASKING = ("boxed", "####", "<answer>", "Answer:")
"""Words of prompts that say how an answer is to be given."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of many texts: the median, the 99th percentile and the longest."""

    median: int
    most: int
    longest: int

    @classmethod
    def of(cls, counts: Sequence[int]) -> "Lengths":
        ordered = sorted(counts)
        return cls(ordered[len(ordered) // 2], ordered[(len(ordered) * 99) // 100], ordered[-1])

    def __str__(self) -> str:
        return f"{self.median} tokens in the median, {self.most} at the 99th percentile, {self.longest} at most"


@dataclass(frozen=True)
class DataFacts:
    """A data file under a model's tokenizer. `template`: what is made of its prompts, in which {prompt} stands for them."""

    path: Path
    rows: int
    prompts: Lengths
    solutions: Lengths | None
    """Worked solutions that stand with the answers; None where most rows have the final answer alone."""
    template: str

    @property
    def task(self) -> str:
        """The task's settings as Python, but for the chat template."""
        return f'name="{DATA_TASK}"'

    @property
    def source(self) -> str:
        """The data's settings as Python; DATA is the file's path."""
        template = "" if self.template == "{prompt}" else f", prompt_template={self.template!r}"
        return f"train=(DataSource(path=str(DATA){template}),)"


def read_data(path: Path, hf_dir: Path, *, chat_template: bool) -> DataFacts:
    """Reads and measures the file. Raises ValueError naming it and the rows that cannot be used."""
    from megatron_entropic.tasks.data import open_data

    named, bare = "--data", DataSource(path=str(path))
    plain = open_data((bare,), seed=None, name=named)
    problems = _read(plain)
    template = TEMPLATE if _needs_asking(problems) else "{prompt}"
    task = open_data((DataSource(path=str(path), prompt_template=template),), seed=None, name=named)
    encoder = PromptEncoder(hf_dir, chat_template=chat_template)
    prompts = Lengths.of([encoder.length(task.problem(place)) for place in _spread(len(task))])
    worked = list(_worked_out(plain, problems))
    tokens = [len(encoder.tokenizer.encode(text, add_special_tokens=False)) for text in worked]
    solutions = Lengths.of(tokens) if 2 * len(tokens) > len(problems) else None
    return DataFacts(path, len(task), prompts, solutions, template)


def _read(task: "DataTask") -> list[Problem]:
    """The problems of the measured rows. Raises ValueError naming the first ones that are none."""
    problems, bad = [], []
    for place in _spread(len(task)):
        try:
            problems.append(task.problem(place))
        except ValueError as error:
            bad.append(str(error))
    if bad:
        more = f"; and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        raise ValueError(f"{len(bad)} of {len(bad) + len(problems)} rows looked at cannot be used: {'; '.join(bad[:_SHOWN])}{more}")
    return problems


def _needs_asking(problems: Sequence[Problem]) -> bool:
    """Whether answers are judged as mathematics, and no prompt says how they are to be given."""
    asked = [text for problem in problems for text in (problem.prompt, *(message["content"] for message in problem.messages))]
    judged = any(problem.data["verifier"]["name"] == "math" for problem in problems)
    return judged and not any(word in text for text in asked for word in ASKING)


def _worked_out(task: "DataTask", problems: Sequence[Problem]) -> Iterator[str]:
    """The texts of answers in which more stands than the final answer, in a box or after ####."""
    from megatron_entropic.tasks.data import formats

    (rows,) = task.sources
    for place, problem in zip(_spread(len(task)), problems, strict=True):
        try:
            text = formats.answer_of(rows.store.row(rows.index(place)), rows.answer_field, rows.prompt_field, structured=False)
        except BadRowError:  # a verifier that reads other fields
            continue
        before, marked, _ = text.rpartition("####")
        final = str(problem.data["answer"])
        if bool(before.strip()) if marked else len(text) > len(final) + len("$\\boxed{}$") + 2:
            yield text


def _spread(count: int) -> Sequence[int]:
    """Places of the rows that are measured."""
    return range(count) if count <= MEASURED_ROWS else [number * count // MEASURED_ROWS for number in range(MEASURED_ROWS)]
