"""Templates with {prompt}, {answer} and {response}, filled in one pass: what a response writes is never a place to fill."""

import re
from collections.abc import Mapping
from typing import Any

from megatron_entropic.tasks.verifiers.extraction import after_thinking
from megatron_entropic.tasks.verifiers.options import Options

PROMPT_FIELDS = ("prompt", "question", "problem")
"""Where a row's prompt is, unless prompt_field says."""
_PLACE = re.compile(r"\{(prompt|answer|response)\}")


class Template:
    """A text to be filled. `thinking`: whether {response} has what stands before </think>."""

    def __init__(self, options: Options, default: str) -> None:
        self.text = options.text("template", default)
        self.prompt_field = options.text("prompt_field", "")
        self.thinking = options.flag("thinking")
        if "{response}" not in self.text:
            raise options.wrong("template", "must contain {response}")

    @property
    def reads(self) -> tuple[str, ...]:
        """Fields of the row."""
        return ((self.prompt_field,) if self.prompt_field else PROMPT_FIELDS) if "{prompt}" in self.text else ()

    def filled(self, answer: str, row: Mapping[str, Any], response: str) -> str:
        """The text. Raises ValueError when the row has no prompt."""
        said = response if self.thinking else after_thinking(response).strip()
        values = {"answer": answer, "response": said}
        if "{prompt}" in self.text:
            values["prompt"] = _prompt(row, self.reads)
        return _PLACE.sub(lambda place: values[place[1]], self.text)


def _prompt(row: Mapping[str, Any], fields: tuple[str, ...]) -> str:
    value = next((row[field] for field in fields if row.get(field)), None)
    if isinstance(value, list):  # a chat
        value = "\n\n".join(str(message.get("content", "")) for message in value if isinstance(message, Mapping))
    if not isinstance(value, str):
        raise ValueError(f"the row has no prompt in {' or '.join(fields)}; name its field by prompt_field")
    return value
