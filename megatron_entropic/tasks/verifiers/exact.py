"""The answer letter by letter, apart from white space around it."""

from collections.abc import Mapping
from typing import Any

from megatron_entropic.tasks.row_values import BadRowError
from megatron_entropic.tasks.verifiers.extraction import extracted, way_of
from megatron_entropic.tasks.verifiers.options import Options


class Exact:
    """Scores 1 when what is extracted is the answer."""

    reads: tuple[str, ...] = ()
    light = True

    def __init__(self, way: str = "whole", *, ignore_case: bool = False, ignore_space: bool = False) -> None:
        self.way, self.ignore_case, self.ignore_space = way, ignore_case, ignore_space

    def known_answer(self, text: str, row: Mapping[str, Any]) -> str:
        """The text, stripped."""
        if not text.strip():
            raise BadRowError("the answer is empty")
        return text.strip()

    def response_of(self, answer: str) -> str:
        """The answer, where it is looked for."""
        return {"tags": f"<answer>{answer}</answer>", "box": rf"\boxed{{{answer}}}"}.get(self.way, answer)

    def score(self, answer: str, row: Mapping[str, Any], response: str) -> float:
        """1.0 or 0.0."""
        given = extracted(response, self.way)
        return float(given is not None and self._plain(given) == self._plain(answer))

    def _plain(self, text: str) -> str:
        text = text.casefold() if self.ignore_case else text
        return " ".join(text.split()) if self.ignore_space else text.strip()


def make_exact(options: Mapping[str, Any]) -> Exact:
    """Options: extract (whole), ignore_case, ignore_space (runs of white space are one space)."""
    read = Options("exact", options, "extract", "ignore_case", "ignore_space")
    return Exact(way_of(read, "whole"), ignore_case=read.flag("ignore_case"), ignore_space=read.flag("ignore_space"))
