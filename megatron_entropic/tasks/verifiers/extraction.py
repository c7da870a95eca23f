r"""Where in a response its answer stands. All are linear in the response's length.

auto    in the last <answer>...</answer>, else in the last \boxed{...}, else after the last "answer is" or "answer:" of a line, else
        the whole; always of what follows the last </think>
tags    in the last <answer>...</answer>, or nothing
box     in the last \boxed{...}, or nothing
line    the last line that is not empty
whole   the whole response
"""

import re

from megatron_entropic.tasks.math_answers import boxed
from megatron_entropic.tasks.verifiers.options import Options

WAYS = ("auto", "tags", "box", "line", "whole")
_SAID = re.compile(r"\banswer(?: is|:)[:\s*]*", re.IGNORECASE)
_FENCE = re.compile(r"^[ \t]*```[ \t]*([A-Za-z0-9_+-]*)[^\n]*$", re.MULTILINE)


def way_of(options: Options, default: str = "auto") -> str:
    """The option `extract`."""
    return options.text("extract", default, one_of=WAYS)


def extracted(response: str, way: str) -> str | None:
    """The answer in a response, stripped; None when there is none where `way` says."""
    if way == "whole":
        return response.strip()
    said = after_thinking(response)
    if way == "line":
        return said.strip().rpartition("\n")[2].strip() or None
    if way in ("tags", "auto") and (inside := _in_tags(said)) is not None:
        return inside
    if way in ("box", "auto") and (inside := boxed(said)) is not None:
        return inside
    if way != "auto":
        return None
    last = None
    for last in _SAID.finditer(said):  # noqa: B007 - the last one is what is wanted
        pass
    return said[last.end() :].partition("\n")[0].strip() if last else said.strip()


def after_thinking(response: str) -> str:
    """What follows the last </think>, or everything."""
    return response.rpartition("</think>")[2]


def fenced(response: str, languages: tuple[str, ...]) -> str | None:
    """The content of the last closed ``` block whose language is one of `languages`, "" being none; None when there is none."""
    found, language, start = None, None, 0
    for fence in _FENCE.finditer(response):
        if language is None:
            language, start = fence[1].lower(), fence.end() + 1
        elif not fence[1]:
            if language in languages:
                found = response[start : fence.start()]
            language = None
        else:
            language, start = fence[1].lower(), fence.end() + 1  # the block before was never closed
    return found


def _in_tags(text: str) -> str | None:
    before, closed, _ = text.rpartition("</answer>")
    _, opened, inside = before.rpartition("<answer>")
    return inside.strip() if closed and opened else None
