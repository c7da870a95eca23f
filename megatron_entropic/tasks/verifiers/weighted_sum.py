"""Several verifiers of one answer: the weighted sum of their scores, each of which is a part."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_entropic.tasks.verifiers.contract import RowVerifier
from megatron_entropic.tasks.verifiers.options import Options

_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,59}")
_MARK = '{"of each part": '
_LONGEST_NAME = 60


@dataclass(frozen=True)
class SummedVerifier:
    """One verifier of a sum; `label` names its part."""

    label: str
    weight: float
    verifier: RowVerifier


class SumVerifier:
    """The sum of weight x score, over the sum of the positive weights, in [0, 1]. Negative weights are penalties."""

    def __init__(self, parts: Sequence[SummedVerifier]) -> None:
        self.parts = parts
        self._whole = sum(max(0.0, part.weight) for part in parts)
        self.waits = any(_has(part, "waits") for part in parts) and all(_has(part, "waits") or _has(part, "light") for part in parts)
        self.light = all(_has(part, "light") for part in parts)
        if all(hasattr(part.verifier, "reads") for part in parts):
            self.reads = tuple(dict.fromkeys(field for part in parts for field in getattr(part.verifier, "reads", ())))

    def start(self) -> None:
        """Loads what the parts need."""
        for part in self.parts:
            if (start := getattr(part.verifier, "start", None)) is not None:
                start()

    def known_answer(self, text: str, row: Mapping[str, Any]) -> str:
        """The answer that all parts take from the text, or, as JSON, that of each."""
        answers = [part.verifier.known_answer(text, row) for part in self.parts]
        return answers[0] if len(set(answers)) == 1 else f"{_MARK}{json.dumps(answers)}}}"

    def score(self, answer: str, row: Mapping[str, Any], response: str) -> dict[str, float]:
        """The total under "score", and each part by its label; parts of a part as LABEL/NAME."""
        answers = json.loads(answer)["of each part"] if answer.startswith(_MARK) else [answer] * len(self.parts)
        scores: dict[str, float] = {}
        total = 0.0
        for part, known in zip(self.parts, answers, strict=True):
            given: Any = part.verifier.score(known, row, response)
            if isinstance(given, Mapping):
                scores.update({f"{part.label}/{name}": value for name, value in given.items() if name != "score"})
                given = given["score"]
            if isinstance(given, str | bytes):
                raise TypeError(f"the part {part.label} gave the text {given[:40]!r}, not a number")
            scores[part.label] = float(given)
            if not 0.0 <= scores[part.label] <= 1.0:
                raise ValueError(f"the part {part.label} gave {scores[part.label]}, which is not a score in [0, 1]")
            total += part.weight * scores[part.label]
        return {**scores, "score": min(1.0, max(0.0, total / self._whole))}


def _has(part: SummedVerifier, attribute: str) -> bool:
    return bool(getattr(part.verifier, attribute, False))


def make_sum(options: Mapping[str, Any]) -> SumVerifier:
    """Options: parts, a list of {name, weight (1), options, label (the name)}."""
    from megatron_entropic.tasks.verifiers import make_verifier  # which imports this file by its table

    read = Options("sum", options, "parts")
    listed = options.get("parts")
    if not isinstance(listed, list | tuple) or not listed:
        raise read.wrong("parts", "must be a list of {name, weight, options}")
    parts: list[SummedVerifier] = []
    for number, entry in enumerate(listed, start=1):
        if not isinstance(entry, Mapping):
            raise read.wrong("parts", f"part {number} is no {{name, weight, options}}")
        part = Options(f"sum, part {number}", entry, "name", "weight", "options", "label")
        name, weight = part.text("name"), part.number("weight", 1.0, at_least=-1e6, at_most=1e6)
        label = part.text("label", "") or name.rpartition(":")[2][:_LONGEST_NAME]
        if label == "score" or not _LABEL.fullmatch(label):
            raise part.wrong("label", f"{label!r} cannot name a part: letters, digits and _ . - are needed, and not the word score")
        if any(label == other.label for other in parts):
            raise part.wrong("label", f"another part is named {label!r}, too; give one of them a label")
        parts.append(SummedVerifier(label, weight, make_verifier(name, part.mapping("options"))))
    if not any(part.weight > 0 for part in parts):
        raise read.wrong("parts", "one weight must be above 0")
    return SumVerifier(parts)
