"""From a problem to the tokens that an engine is given, and how many these are. A text stands for the problem that asks it."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from megatron_entropic.tasks.task import Problem

_UNBOUNDED = 10**9
_OWN_ARGUMENTS = ("conversation", "messages", "chat_template", "add_generation_prompt", "tokenize", "return_tensors", "return_dict")
"""Arguments of a tokenizer's chat template that are not the user's."""
_MARGIN = 8
"""Tokens that a tokenizer may add to a text: of its beginning and end, or for a space in front."""


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that prompts and responses need."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def decode(self, ids: list[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool) -> str: ...

    def get_vocab(self) -> dict[str, int]: ...

    def apply_chat_template(
        self, conversation: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool, **options: Any
    ) -> str: ...


def load_tokenizer(hf_dir: Path) -> Tokenizer:
    """The tokenizer of a Hugging Face directory, from disk only; never runs code that came with the checkpoint."""
    from transformers import AutoTokenizer  # seconds to import, and only rank 0 needs it

    tokenizer: Tokenizer = AutoTokenizer.from_pretrained(
        hf_dir,
        local_files_only=True,
        trust_remote_code=False,
        model_max_length=_UNBOUNDED,  # lengths are looked at by whoever asks for them: no warnings of transformers' own
    )
    return tokenizer


class PromptEncoder:
    """The tokenizer of a Hugging Face directory, read when it is first needed, and its chat template where one is asked for."""

    def __init__(self, hf_dir: Path, *, chat_template: bool) -> None:
        self.hf_dir = hf_dir
        self.chat_template = chat_template
        self._lengths: dict[str, int] = {}

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Raises ValueError when a chat template is asked for that the tokenizer does not have."""
        tokenizer = load_tokenizer(self.hf_dir)
        if self.chat_template and not getattr(tokenizer, "chat_template", None):
            raise ValueError(f"task.chat_template=true, but the tokenizer of {self.hf_dir} has no chat template")
        return tokenizer

    def encode(self, asked: str | Problem) -> tuple[str, tuple[int, ...]]:
        """The prompt that asks a text or a problem: as text, and as token ids.

        Raises ValueError for a chat where there is no template for it.
        """
        problem = _problem(asked)
        text = self._templated(problem) if self.chat_template else problem.prompt
        if not self.chat_template and (problem.messages or problem.template_options):
            raise ValueError(f"{_origin(problem)} is asked by a chat, which needs task.chat_template=true: {problem.prompt[:60]!r}")
        return text, tuple(self.tokenizer.encode(text, add_special_tokens=not self.chat_template))

    def length(self, asked: str | Problem) -> int:
        """Tokens of the prompt."""
        return len(self.encode(asked)[1])

    def fits(self, asked: str | Problem, room: int) -> bool:
        """Whether the prompt has at most `room` tokens. Without the tokenizer where its length alone says so."""
        problem = _problem(asked)
        texts = [message["content"] for message in _chat(problem)]
        short = all(map(str.isascii, texts)) and sum(map(len, texts)) + self._around(problem) + _MARGIN <= room
        return short or self.length(problem) <= room

    def cut(self, text: str, room: int) -> str:
        """`text` with as few characters as possible taken out of its middle, so that its prompt has at most `room` tokens."""
        return self.cut_problem(Problem(text), room).prompt

    def cut_problem(self, problem: Problem, room: int) -> Problem:
        """The same of a problem: out of the last message of its chat."""
        text = _chat(problem)[-1]["content"]
        kept, too_many = 0, len(text)
        while too_many - kept > 1:
            middle = (kept + too_many) // 2
            kept, too_many = (middle, too_many) if self.length(_asking(problem, _ends(text, middle))) <= room else (kept, middle)
        return _asking(problem, _ends(text, kept))

    def check_template_options(self, options: Mapping[str, Any], where: str) -> None:
        """Raises ValueError for arguments that the chat template would not see; `where` is the setting that gives them."""
        if options and not self.chat_template:
            raise ValueError(f"{where}: is for chat templates, which task.chat_template=true turns on")
        template = getattr(self.tokenizer, "chat_template", None)
        for name in options:
            if name in _OWN_ARGUMENTS:
                raise ValueError(f"{where}.{name}: is set by the run itself")
            if isinstance(template, str) and not re.search(rf"\b{re.escape(name)}\b", template):
                raise ValueError(f"{where}.{name}: the chat template of {self.hf_dir} does not read it")

    def _templated(self, problem: Problem) -> str:
        return self.tokenizer.apply_chat_template(
            [dict(message) for message in _chat(problem)],
            tokenize=False,
            add_generation_prompt=True,
            **problem.template_options,
        )

    def _around(self, problem: Problem) -> int:
        """Tokens of the template around the texts of a prompt: those of the same chat of empty messages."""
        if not self.chat_template:
            return 0
        empty = [{**message, "content": ""} for message in _chat(problem)]
        key = json.dumps([empty, dict(problem.template_options)], sort_keys=True, default=str)
        if key not in self._lengths:
            self._lengths[key] = self.length(replace(problem, prompt="", messages=tuple(empty)))
        return self._lengths[key]


def _problem(asked: str | Problem) -> Problem:
    return Problem(asked) if isinstance(asked, str) else asked


def _chat(problem: Problem) -> list[Mapping[str, str]]:
    """The messages of a problem: its own, or one of the user with its text."""
    return list(problem.messages) or [{"role": "user", "content": problem.prompt}]


def _asking(problem: Problem, text: str) -> Problem:
    """The problem with another text of its last message."""
    if not problem.messages:
        return replace(problem, prompt=text)
    return replace(problem, messages=(*problem.messages[:-1], {**problem.messages[-1], "content": text}))


def _origin(problem: Problem) -> str:
    source, row = problem.data.get("source"), problem.data.get("row")
    return "a problem" if source is None else f"{source}, row {row}"


def _ends(text: str, count: int) -> str:
    """The first and last characters of a text, `count` together."""
    return text[: count - count // 2] + text[len(text) - count // 2 :]
