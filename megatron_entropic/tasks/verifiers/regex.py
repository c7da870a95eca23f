"""A pattern that the answer fits. Patterns may take for ever: they are judged within the run's limits."""

import re
from collections.abc import Mapping
from typing import Any

from megatron_entropic.tasks.row_values import BadRowError
from megatron_entropic.tasks.verifiers.extraction import extracted, way_of
from megatron_entropic.tasks.verifiers.options import Options


class Regex:
    """Scores 1 when the pattern is found; `whole` when all that is extracted fits it. Without a pattern the answer is one."""

    reads: tuple[str, ...] = ()

    def __init__(self, way: str, pattern: re.Pattern[str] | None, flags: int, *, whole: bool) -> None:
        self.way, self.pattern, self.flags, self.whole = way, pattern, flags, whole

    def known_answer(self, text: str, row: Mapping[str, Any]) -> str:
        """The text, which must be a regular expression unless the options have one."""
        if self.pattern is None:
            if not text.strip():
                raise BadRowError("the answer is empty; a regular expression is needed")
            try:
                re.compile(text, self.flags)
            except re.error as error:
                raise BadRowError(f"the answer {text[:60]!r} is no regular expression: {error}") from None
        return text

    def score(self, answer: str, row: Mapping[str, Any], response: str) -> float:
        """1.0 or 0.0."""
        given = extracted(response, self.way)
        if given is None:
            return 0.0
        pattern = self.pattern or re.compile(answer, self.flags)
        return float((pattern.fullmatch if self.whole else pattern.search)(given) is not None)


def make_regex(options: Mapping[str, Any]) -> Regex:
    """Options: pattern (else the row's answer), extract (whole), ignore_case, whole (the pattern must fit all of it)."""
    read = Options("regex", options, "extract", "pattern", "ignore_case", "whole")
    flags = re.IGNORECASE if read.flag("ignore_case") else 0
    pattern = read.pattern("pattern", None, flags) if "pattern" in options else None
    return Regex(way_of(read, "whole"), pattern, flags, whole=read.flag("whole"))
