"""A function of the user's as a verifier: function(response, answer, row, **options) -> a number in [0, 1], or parts with "score"."""

from collections.abc import Callable, Mapping
from typing import Any


class FunctionVerifier:
    """Scores by `function`, which `name` names in messages."""

    def __init__(self, name: str, function: Callable[..., Any], options: Mapping[str, Any]) -> None:
        self.name, self.function, self.options = name, function, dict(options)

    def known_answer(self, text: str, row: Mapping[str, Any]) -> str:
        """The text as it is: what it means is the function's business."""
        return text.strip()

    def score(self, answer: str, row: Mapping[str, Any], response: str) -> Any:
        """What the function returns; tasks/verification checks it."""
        return self.function(response, answer, row, **self.options)
