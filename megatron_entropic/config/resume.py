"""Differences between a checkpoint's settings and the current ones, and which of them are allowed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_entropic.config import Config
from megatron_entropic.config.loading import to_dict
from megatron_entropic.config.secrets import without_secrets
from megatron_entropic.errors import ReportedError

ALLOW_CHANGE = "--allow-change"

FREE_TO_CHANGE = (
    "parallel",
    "checkpoint",
    "rollout",
    "control",
    "algorithm",
    "optimizer",
    "profile",
    "reward",
    "trainer",
    "validation",
    "tracking",
    "alerts",
)
"""Sections whose settings may be others on resume."""
ALSO_FREE = (
    "batch.max_tokens_per_micro_batch",
    "model.gradient_accumulation_fusion",
    "model.grouped_experts",
    "model.layer_spec",
    "model.recompute",
    "model.vocab_pad_multiple",
)
"""Settings of other sections that change how a run computes, and not what: those that cure a lack of memory, among others."""
UNIMPORTANT = ("run",)
"""Sections that may change without a word: folders are moved."""
BY_CONTENT = ("model.hf_path",)
"""Settings that may be spelled otherwise; commands/resume.py compares what they name."""

METHOD: Mapping[str, str] = {
    "batch.prompts_per_step": "other prompts: a step's are counted from step x prompts_per_step; some return, or never come",
    "batch.samples_per_prompt": "advantages are taken over groups of another size",
    "batch.mini_batches": "another number of updates in a step; schedules count updates",
    "task": "other prompts or rewards from here on",
    "data": "other prompts or rewards from here on",
    "reward.overlong_buffer": "the length of responses costs something else from here on",
    "reward.overlong_penalty": "the length of responses costs something else from here on",
    "model.fp8": "products round otherwise from here on",
    "control.kind": "a controller without a past takes over",
    "trainer.seed": "other prompts and samples from here on",
}
"""Settings, or whole sections, that may be others when the user says so, and what then happens."""
_OF_PROMPTS = ("batch.prompts_per_step", "batch.samples_per_prompt", "task", "data", "trainer.seed")
"""Those of METHOD that rollouts generated ahead have been made with already."""


class SettingsDifferenceError(ReportedError, ValueError):
    """The settings of now do not fit a checkpoint; the message names it and shows them."""


@dataclass(frozen=True)
class Difference:
    """One setting that was `saved` with another value than it has `now`."""

    setting: str
    saved: Any
    now: Any

    @property
    def consequence(self) -> str | None:
        """The consequence of the change, for a setting that is part of the method."""
        return METHOD.get(self.setting, METHOD.get(self.setting.split(".")[0]))

    @property
    def allowed(self) -> bool:
        """Whether a run may be resumed with it without being asked."""
        if self.setting in ALSO_FREE:
            return True
        free = self.setting.split(".")[0] in FREE_TO_CHANGE and self.setting != "rollout.max_staleness"
        return free and self.consequence is None

    @property
    def concerns_prompts(self) -> bool:
        """Whether rollouts generated ahead were made with the `saved` value."""
        return self.setting.startswith(_OF_PROMPTS)

    def __str__(self) -> str:
        return f"  - {self.setting}: {self.saved!r}\n  + {self.setting}: {self.now!r}"


def refuse(changed: Sequence[Difference], checkpoint: Path, *, allow_change: bool = False, ahead: bool = False) -> None:
    """Raises SettingsDifferenceError showing those of the differences that must not be.

    Args:
        allow_change: whether settings of the method may be others.
        ahead: whether rollouts generated ahead are waiting (rollout.max_staleness), which settings of prompts must fit.
    """
    asking = [change for change in changed if change.consequence and not change.allowed]
    never = [change for change in changed if not change.allowed and (change not in asking or (ahead and change.concerns_prompts))]
    if never:
        raise SettingsDifferenceError(
            f"{checkpoint}: was saved with settings that must not change (- saved, + now):\n" + "\n".join(map(str, never))
        )
    if asking and not allow_change:
        listed = "\n".join(f"{change}\n    {change.consequence}" for change in asking if change not in never)
        raise SettingsDifferenceError(
            f"{checkpoint}: was saved with other settings of the method (- saved, + now); {ALLOW_CHANGE} resumes with those of now:\n"
            f"{listed}"
        )


def differences(saved: Mapping[str, Mapping[str, Any]], now: Mapping[str, Mapping[str, Any]]) -> list[Difference]:
    """All settings that differ, by name. One that `saved` does not know has its default there; one that is no more is left out.

    Of secrets, which checkpoints do not hold, what is shown of them is compared.
    """
    found = []
    saved, now = without_secrets(saved), without_secrets(now)
    for section, defaults in to_dict(Config()).items():
        before, after = ({**defaults, **settings.get(section, {})} for settings in (saved, now))
        for name in sorted(defaults) if section not in UNIMPORTANT else ():
            if before[name] != after[name] and f"{section}.{name}" not in BY_CONTENT:
                found.append(Difference(f"{section}.{name}", before[name], after[name]))
    return found
