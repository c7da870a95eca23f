"""What `megatron-entropic new` finds in a data file, and how the recipe it writes names that file. The one place that knows which
task reads it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_entropic.config import TaskConfig
from megatron_entropic.config.loading import ConfigError
from megatron_entropic.rollout.prompt_encoder import PromptEncoder
from megatron_entropic.tasks import make_task
from megatron_entropic.tasks.json_lines import json_lines
from megatron_entropic.tasks.row_task import RowTask
from megatron_entropic.tasks.row_values import answer_text, value_at
from megatron_entropic.tasks.rows import DataRow

MEASURED_ROWS = 2000
"""Rows whose tokens are counted; of more, evenly spread ones. All are read and checked."""
TASK = "math"


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
    """A data file under a model's tokenizer."""

    path: Path
    rows: int
    prompts: Lengths
    solutions: Lengths | None
    """Worked solutions that stand with the answers; None where most rows have the final answer alone."""

    @property
    def task(self) -> str:
        """The task's settings as Python, but for the chat template; DATA is the file's path."""
        return f'name="{TASK}", options={{"path": str(DATA)}}'


def read_data(path: Path, hf_dir: Path, *, chat_template: bool) -> DataFacts:
    """Reads and measures the file. Raises ValueError naming it and the lines that cannot be used."""
    task = make_task(TaskConfig(name=TASK, options={"path": str(path)}), seed=0)
    if not isinstance(task, RowTask):
        raise ConfigError(f"task.name={TASK} reads no file")
    encoder = PromptEncoder(hf_dir, chat_template=chat_template)
    chosen = _spread(task.rows)
    prompts = [encoder.length(task.problem_of(row).prompt) for row in chosen]
    finals = {row.number: row.answer for row in chosen}
    texts = {
        line.number: answer_text(value_at(line.fields(), task.file.answer_field), task.file.answer_field)
        for line in json_lines(path)
        if line.number in finals
    }
    worked = [text for number, text in texts.items() if _is_worked_out(text, finals[number])]
    tokens = [len(encoder.tokenizer.encode(text, add_special_tokens=False)) for text in worked]
    solutions = Lengths.of(tokens) if 2 * len(tokens) > len(chosen) else None
    return DataFacts(path, len(task.rows), Lengths.of(prompts), solutions)


def _is_worked_out(text: str, final: str) -> bool:
    """Whether more stands there than the final answer, in a box or after ####."""
    before, marked, _ = text.rpartition("####")
    return bool(before.strip()) if marked else len(text) > len(final) + len("$\\boxed{}$") + 2


def _spread(rows: Sequence[DataRow]) -> Sequence[DataRow]:
    if len(rows) <= MEASURED_ROWS:
        return rows
    return [rows[number * len(rows) // MEASURED_ROWS] for number in range(MEASURED_ROWS)]
