r"""What a row asks and answers: the rows of verl, slime, NeMo-RL, GSM8K, MATH, DAPO-Math-17k, or of fields that are named.

verl, DAPO       data_source, prompt=[{role, content}], reward_model.ground_truth, extra_info
slime            prompt (text or chat), label, metadata
NeMo-RL          problem and expected_answer, input and output, or messages whose last one, the assistant's, is the answer
GSM8K            question, answer with ####
MATH, AIME, AMC  problem or question, answer, else solution with \boxed{...}
"""

import decimal
import json
from collections.abc import Mapping, Sequence
from typing import Any

from megatron_entropic.tasks.row_values import BadRowError, answer_text, find, sound_text, value_at
from megatron_entropic.tasks.rows import ANSWER_FIELDS as COMMON_ANSWER_FIELDS
from megatron_entropic.tasks.rows import PROMPT_FIELDS as COMMON_PROMPT_FIELDS

PROMPT_FIELDS = (*COMMON_PROMPT_FIELDS, "messages", "input", "responses_create_params.input", "instruction", "text")
ANSWER_FIELDS = (*COMMON_ANSWER_FIELDS, "output", "tests", "test_cases")
"""Names of a prompt's and an answer's field, the first that a row has."""
LAST_MESSAGE = "messages"
"""As the answer's field: the last message, the assistant's."""
VERIFIER_FIELDS = ("verifier", "verifier_options")
"""Of a row that says itself how it is judged."""
BY_DATA_SOURCE = {"math_dapo": "number"}
"""Verifiers by a row's data_source where maths in a box is not what its prompt asks for: DAPO's ends in a line `Answer: ...`."""
ROLES = ("system", "developer", "user", "assistant", "tool")

Message = Mapping[str, str]


def prompt_field_of(row: Mapping[str, Any]) -> str:
    """The field that holds the row's prompt. Raises BadRowError listing those it has."""
    return _first(row, PROMPT_FIELDS, "prompt")


def answer_field_of(row: Mapping[str, Any], prompt_field: str) -> str:
    """The same for the known answer."""
    others = [name for name in ANSWER_FIELDS if name != prompt_field]
    if prompt_field == LAST_MESSAGE and all(find(row, name) is None for name in others):
        return LAST_MESSAGE
    return _first(row, others, "answer")


def _first(row: Mapping[str, Any], known: Sequence[str], what: str) -> str:
    for name in known:
        if find(row, name) is not None:
            return name
    raise BadRowError(
        f"no field for the {what}; found: {', '.join(row) or 'none'}; known: {', '.join(known)}; name yours by {what}_field"
    )


def messages_of(row: Mapping[str, Any], prompt_field: str, answer_field: str) -> list[dict[str, str]]:
    """The chat that asks a row; of a text one message of the user. Raises BadRowError."""
    value = value_at(row, prompt_field)
    if not isinstance(value, list):
        return [{"role": "user", "content": sound_text(value, prompt_field)}]
    messages = [_message(message, f"{prompt_field}[{number}]") for number, message in enumerate(value)]
    if prompt_field == answer_field == LAST_MESSAGE:
        if not messages or messages[-1]["role"] != "assistant":
            raise BadRowError(f"field {prompt_field} does not end in an answer of the assistant, and no other field holds one")
        messages.pop()
    if not messages or messages[-1]["role"] not in ("user", "tool"):
        roles = [message["role"] for message in messages]
        raise BadRowError(f"field {prompt_field} is a chat of {roles}; it must end in a message of the user")
    return messages


def _message(message: Any, where: str) -> dict[str, str]:
    if not isinstance(message, Mapping) or message.get("role") not in ROLES:
        raise BadRowError(f"field {where} is no message of {', '.join(ROLES)} with role and content")
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(_text_part(part, f"{where}.content") for part in content)
    return {"role": message["role"], "content": sound_text(content, f"{where}.content")}


def _text_part(part: Any, where: str) -> str:
    if isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    raise BadRowError(f"field {where} holds a part that is no text")


def answer_of(row: Mapping[str, Any], answer_field: str, prompt_field: str, *, structured: bool) -> str:
    """The known answer as text, "" without a field of it; lists and objects as JSON where `structured`. Raises BadRowError."""
    if not answer_field:
        return ""
    value = value_at(row, answer_field)
    if answer_field == prompt_field == LAST_MESSAGE:
        return sound_text(value[-1].get("content") if value else None, f"{answer_field}[-1].content").strip()
    if structured and isinstance(value, list | dict):
        return json.dumps(plain(value), ensure_ascii=False)
    if isinstance(value, float):
        value = decimal.Decimal(repr(value))
    return answer_text(value, answer_field)


def plain(value: Any) -> Any:
    """A value of a row in JSON's types: what JSON has no type for (dates, bytes) as text."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if value - value == 0 else str(value)
    if isinstance(value, decimal.Decimal):
        return plain(float(value))
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def question_of(messages: Sequence[Message]) -> str:
    """The chat as one text: what the user asks, or all of it where more was said."""
    asked = [message for message in messages if message["role"] != "system"]
    if len(asked) == 1:
        return asked[0]["content"]
    return "\n".join(f"{message['role']}: {message['content']}" for message in asked)
