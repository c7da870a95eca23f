"""From a problem's text to the tokens that an engine is given, and how many these are."""

from functools import cached_property
from pathlib import Path
from typing import Protocol

_UNBOUNDED = 10**9
_MARGIN = 8
"""Tokens that a tokenizer may add to a text: of its beginning and end, or for a space in front."""


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that prompts and responses need."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def decode(self, ids: list[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool) -> str: ...

    def get_vocab(self) -> dict[str, int]: ...

    def apply_chat_template(self, conversation: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool) -> str: ...


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

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Raises ValueError when a chat template is asked for that the tokenizer does not have."""
        tokenizer = load_tokenizer(self.hf_dir)
        if self.chat_template and not getattr(tokenizer, "chat_template", None):
            raise ValueError(f"task.chat_template=true, but the tokenizer of {self.hf_dir} has no chat template")
        return tokenizer

    def encode(self, text: str) -> tuple[str, tuple[int, ...]]:
        """The prompt for `text`: as text, and as token ids."""
        if self.chat_template:
            message = {"role": "user", "content": text}
            text = self.tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
        return text, tuple(self.tokenizer.encode(text, add_special_tokens=not self.chat_template))

    def length(self, text: str) -> int:
        """Tokens of the prompt that asks `text`."""
        return len(self.encode(text)[1])

    def fits(self, text: str, room: int) -> bool:
        """Whether the prompt that asks `text` has at most `room` tokens. Without the tokenizer where its length alone says so."""
        return (text.isascii() and len(text) + self._around + _MARGIN <= room) or self.length(text) <= room

    def cut(self, text: str, room: int) -> str:
        """`text` with as few characters as possible taken out of its middle, so that its prompt has at most `room` tokens."""
        kept, too_many = 0, len(text)
        while too_many - kept > 1:
            middle = (kept + too_many) // 2
            kept, too_many = (middle, too_many) if self.length(_ends(text, middle)) <= room else (kept, middle)
        return _ends(text, kept)

    @cached_property
    def _around(self) -> int:
        """Tokens of the template around a prompt."""
        return self.length("") if self.chat_template else 0


def _ends(text: str, count: int) -> str:
    """The first and last characters of a text, `count` together."""
    return text[: count - count // 2] + text[len(text) - count // 2 :]
