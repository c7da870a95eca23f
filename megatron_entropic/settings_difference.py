"""What is different between the settings a checkpoint was saved with and those of now, and what of it may be."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_entropic.errors import ReportedError

FREE_TO_CHANGE = ("parallel", "checkpoint", "rollout", "control", "algorithm", "optimizer", "trainer", "reward")
"""Sections whose settings may be others on resume."""
FIXED = ("control.kind", "rollout.max_staleness", "trainer.seed")
"""Settings of those sections that may not: the saved state, or the rest of the run, would not fit."""
UNIMPORTANT = ("run",)
"""Sections that may change without a word: folders are moved."""


class SettingsDifferenceError(ReportedError, ValueError):
    """The settings of now do not fit a checkpoint; the message names it and shows them."""


@dataclass(frozen=True)
class Difference:
    """One setting that was `saved` with another value than it has `now`."""

    setting: str
    saved: Any
    now: Any

    @property
    def allowed(self) -> bool:
        """Whether a run may be resumed with it."""
        return self.setting.split(".")[0] in FREE_TO_CHANGE and self.setting not in FIXED

    def __str__(self) -> str:
        return f"  - {self.setting}: {self.saved!r}\n  + {self.setting}: {self.now!r}"


def refuse(changed: Sequence[Difference], checkpoint: Path) -> None:
    """Raises SettingsDifferenceError showing those of the differences that must not be."""
    if refused := [difference for difference in changed if not difference.allowed]:
        listed = "\n".join(map(str, refused))
        raise SettingsDifferenceError(f"{checkpoint}: was saved with settings that must not change (- saved, + now):\n{listed}")


def differences(saved: Mapping[str, Mapping[str, Any]], now: Mapping[str, Mapping[str, Any]]) -> list[Difference]:
    """All settings that differ, by name; a setting that one side does not know counts as null there."""
    found = []
    for section in sorted(saved.keys() | now.keys()):
        before, after = saved.get(section, {}), now.get(section, {})
        for name in sorted(before.keys() | after.keys()):
            if section not in UNIMPORTANT and before.get(name) != after.get(name):
                found.append(Difference(f"{section}.{name}", before.get(name), after.get(name)))
    return found
