"""The run's data order: step -> problems -> prompts with token ids."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from megatron_entropic.rollout.types import Prompt
from megatron_entropic.tasks.task import Problem, Task


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that prompts need."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def apply_chat_template(self, conversation: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool) -> str: ...


def load_tokenizer(hf_dir: Path) -> Tokenizer:
    """The tokenizer of a Hugging Face directory, from disk only; never runs code that came with the checkpoint."""
    from transformers import AutoTokenizer  # seconds to import, and only rank 0 needs it

    tokenizer: Tokenizer = AutoTokenizer.from_pretrained(hf_dir, local_files_only=True, trust_remote_code=False)
    return tokenizer


class PromptStream:
    """An endless stream: step k holds prompts k n ... (k + 1) n - 1. The place in it is the step, so resuming needs no state."""

    def __init__(self, task: Task, tokenizer: Tokenizer, *, prompts_per_step: int, chat_template: bool) -> None:
        self.task = task
        self.tokenizer = tokenizer
        self.prompts_per_step = prompts_per_step
        self.chat_template = chat_template

    def step(self, step: int) -> tuple[list[Prompt], Mapping[int, Problem]]:
        """The prompts of a step, and their problems by prompt index. Raises ValueError for a prompt without tokens."""
        first = step * self.prompts_per_step
        problems = {index: self.task.problem(index) for index in range(first, first + self.prompts_per_step)}
        return [self._prompt(index, problem) for index, problem in problems.items()], problems

    def _prompt(self, index: int, problem: Problem) -> Prompt:
        text = problem.prompt
        if self.chat_template:
            message = {"role": "user", "content": text}
            text = self.tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
        token_ids = tuple(self.tokenizer.encode(text, add_special_tokens=not self.chat_template))
        if not token_ids:
            raise ValueError(f"prompt {index} of the task has no tokens: {text!r}")
        return Prompt(index, text, token_ids)
