"""Rollouts that a report shows, with their untrusted text escaped."""

import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from megatron_entropic.rollout.recording import RecordedRollout, read_rollouts, recorded_steps

PROMPTS_PER_STEP = 2
SAMPLES_PER_PROMPT = 3
MAX_CHARACTERS = 1500


@dataclass(frozen=True)
class SampleGroup:
    """Some rollouts of one prompt, lowest reward first; `of` is how many the prompt had."""

    prompt_index: int
    prompt: str
    of: int
    rollouts: tuple[RecordedRollout, ...]


@dataclass(frozen=True)
class StepSamples:
    """Samples shown of one step; `error` says why there is nothing to show."""

    step: int
    groups: tuple[SampleGroup, ...] = ()
    error: str | None = None


def pick_samples(rollouts_dir: str | os.PathLike[str]) -> list[StepSamples]:
    """Samples of the first, middle and last recorded step; an unreadable file becomes a StepSamples with its error."""
    if not Path(rollouts_dir).is_dir():
        return []
    steps = recorded_steps(rollouts_dir)
    chosen = sorted({steps[0], steps[len(steps) // 2], steps[-1]}) if steps else []
    return [_samples_of(rollouts_dir, step) for step in chosen]


def _samples_of(rollouts_dir: str | os.PathLike[str], step: int) -> StepSamples:
    try:
        records = read_rollouts(rollouts_dir, step)
    except (FileNotFoundError, ValueError) as error:
        return StepSamples(step, error=visible(str(error)))
    groups = [tuple(group) for _, group in groupby(records, key=lambda record: record.rollout.prompt_index)]
    groups.sort(key=lambda group: len({record.reward for record in group}) == 1)  # prompts with mixed rewards first; stable
    return StepSamples(step, tuple(_sample_group(group) for group in groups[:PROMPTS_PER_STEP]))


def _sample_group(group: Sequence[RecordedRollout]) -> SampleGroup:
    """The rollouts with the lowest, middle and highest reward."""
    ranked = sorted(group, key=lambda record: record.reward)
    last = len(ranked) - 1
    positions = sorted({round(number * last / (SAMPLES_PER_PROMPT - 1)) for number in range(SAMPLES_PER_PROMPT)})
    first = group[0]
    return SampleGroup(first.rollout.prompt_index, first.problem.prompt, len(group), tuple(ranked[position] for position in positions))


def visible(text: str) -> str:
    r"""`text` cut to MAX_CHARACTERS, with control, bidirectional and other unprintable characters shown as \u escapes.

    HTML is not escaped here: the template does that.
    """
    shown = escaped(text[:MAX_CHARACTERS])
    left = len(text) - MAX_CHARACTERS
    return f"{shown} … ({left} more characters)" if left > 0 else shown


def escaped(text: str) -> str:
    r"""`text` with control, bidirectional and other unprintable characters shown as \u escapes; HTML is not escaped here either."""
    return "".join(character if _is_printable(character) else _escape(character) for character in text)


def _is_printable(character: str) -> bool:
    return character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def _escape(character: str) -> str:
    return f"\\u{ord(character):04x}" if ord(character) < 0x10000 else f"\\U{ord(character):08x}"
