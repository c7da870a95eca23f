r"""The answer of a response: what stands in its last whole \boxed{...} that is not empty."""

import re

_BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?![A-Za-z])\s*")
_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)
"""Braces that count, and escaped characters, which do not."""
_BARE = re.compile(r"[^\s{}$\\]+")


def boxed(response: str) -> str | None:
    r"""The content of the last \boxed{...} or \fbox{...}; None when there is none.

    Boxes that are empty, or cut off by the end of the response, are passed over. \boxed 42 and \boxed {42} count too. Linear in
    the text's length.
    """
    ends = _closing_braces(response)
    for box in reversed(list(_BOX.finditer(response))):
        start = box.end()
        if response[start : start + 1] == "{":
            end = ends.get(start)
            inside = "" if end is None else response[start + 1 : end].strip()
        else:
            bare = _BARE.match(response, start)
            inside = bare[0] if bare and start > box.start() + len(box[0].rstrip()) else ""
        if inside:
            return inside
    return None


def boxed_or_marked(response: str) -> str | None:
    r"""The content of the last box; where there is none, what follows #### in the last line, as GSM8K's prompts ask for it.

    A heading of four # with text below it is none: nothing but white space may follow that line.
    """
    if (inside := boxed(response)) is not None:
        return inside
    before, marked, after = response.rstrip().rpartition("\n")[2].rpartition("####")
    return after.strip() or None if marked and not before.endswith("#") else None


def _closing_braces(text: str) -> dict[int, int]:
    """By the index of each opening brace, that of the brace that closes it."""
    open_at: list[int] = []
    closing = {}
    for brace in _BRACES.finditer(text):
        if brace[0] == "{":
            open_at.append(brace.start())
        elif brace[0] == "}" and open_at:
            closing[open_at.pop()] = brace.start()
    return closing
