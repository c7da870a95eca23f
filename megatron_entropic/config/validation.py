"""The settings of validation: which sets of problems, how they are sampled, and how often."""

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator
from pydantic.dataclasses import dataclass

from megatron_entropic.config.control import STRICT
from megatron_entropic.config.data import DataSource, VerifierPart

_SET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,59}")
_BOXED = "{prompt}\nPlease reason step by step, and put your final answer within \\boxed{}.\n"
_REPORTED = {"temperature": 0.6, "max_new_tokens": 8192, "verifier": "math", "prompt_template": _BOXED, "bad_rows": "leave_out"}
_FEW = {**_REPORTED, "samples": 32}
"""Sets of some ten problems: 32 answers to each, as the papers report avg@32."""
_MANY = {**_REPORTED, "samples": 4, "greedy": True}
"""Sets of hundreds of problems: the papers report a greedy answer, or four."""

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "aime24": {**_FEW, "path": "HuggingFaceH4/aime_2024", "split": "train", "prompt_field": "problem", "answer_field": "answer"},
    "aime25": {**_FEW, "path": "math-ai/aime25", "split": "test", "prompt_field": "problem", "answer_field": "answer"},
    "amc23": {**_FEW, "path": "math-ai/amc23", "split": "test", "prompt_field": "question", "answer_field": "answer"},
    "math500": {**_MANY, "path": "HuggingFaceH4/MATH-500", "split": "test", "prompt_field": "problem", "answer_field": "answer"},
    "olympiadbench": {
        **_MANY,
        "path": "math-ai/olympiadbench",
        "split": "test",
        "prompt_field": "question",
        "answer_field": "final_answer",
    },
    "omni_math": {**_MANY, "path": "KbsdJames/Omni-MATH", "split": "test", "prompt_field": "problem", "answer_field": "answer"},
    "minerva": {**_MANY, "path": "math-ai/minervamath", "split": "test", "prompt_field": "question", "answer_field": "answer"},
    "decompose": {"task": "decompose"},
    "addition": {"task": "addition"},
    "chain_sum": {"task": "reasoning_gym", "options": {"dataset": "chain_sum"}},
}
"""Sets by name. What a user's set of the same name says wins: `{name: aime24, path: FILE}`; with a file of the user's its fields are
recognised unless named, and `split` is the user's too."""
_OF_THE_HUB = ("split", "prompt_field", "answer_field")
"""Settings of a preset that describe the hub's files, not a user's."""

_OF_SOURCES = (
    "split",
    "subset",
    "prompt_field",
    "answer_field",
    "prompt_template",
    "system",
    "template_options",
    "filter",
    "verifier",
    "verifier_options",
    "limit",
)
"""Settings of a set that a source of data.train has too, with the same meaning."""
_OF_FILES: Mapping[str, Any] = {
    **dict.fromkeys(("subset", "prompt_field", "answer_field", "system", "filter", "verifier"), ""),
    "split": "train",
    "part": "all",
    "prompt_template": "{prompt}",
    "verifier_options": {},
    "template_options": {},
}
"""Settings of a set that only a file's rows have, and their defaults."""

HIGHER_IS_BETTER: Mapping[str, bool] = {
    "avg": True,
    "pass": True,
    "majority": True,
    "greedy": True,
    "avg_low": True,
    "avg_high": True,
    "distinct": True,
    "length": False,
    "truncated": False,
}
"""The statistics of a set, metrics validation/NAME/STATISTIC, and whether more is better."""


@dataclass(frozen=True, config=STRICT)
class ValidationSet:
    """One set of problems: of a file (`path`), made by a task (`task`), or with neither what the run's own task holds out."""

    name: str = Field(description="of its metrics, validation/NAME/..., and its folder: letters, digits, _ . -")
    path: str = Field(default="", description="file, folder or hub name of problems, as a source of data.train")
    split: str = Field(default="train", description="split of a data set that has several")
    subset: str = Field(default="", description="configuration of a data set on the hub")
    part: Literal["train", "held_out", "all"] = Field(default="all", description="which rows, by data.held_out and the hash of prompts")
    prompt_field: str = Field(default="", description="field of the prompt; '' recognises it")
    answer_field: str = Field(default="", description="field of the known answer; '' recognises it")
    prompt_template: str = Field(default="{prompt}", description="text of the user's message; {prompt} is the row's")
    system: str = Field(default="", description="system prompt, in place of the row's own")
    template_options: dict[str, Any] = Field(
        default_factory=dict, description="arguments of the chat template, such as enable_thinking"
    )
    filter: str = Field(default="", description="expression on the row's fields; rows for which it is false are left out")
    verifier: str | tuple[VerifierPart, ...] = Field(default="", description="judges the answers, as that of a source of data.train")
    verifier_options: dict[str, Any] = Field(default_factory=dict, description="options of the verifier")
    bad_rows: Literal["refuse", "leave_out"] = Field(default="refuse", description="rows whose answer no verifier can compare")
    task: str = Field(default="", description="task that makes the problems, as task.name")
    options: dict[str, Any] = Field(default_factory=dict, description="its options, as task.options")
    limit: int = Field(default=0, ge=0, description="problems, the first of the file; 0: all of a file, 64 of a task that makes them")
    samples: int = Field(default=4, ge=1, description="answers sampled to each problem: the k of avg@k and majority@k")
    pass_at: int = Field(default=0, ge=0, description="the k of pass@k, at most samples; 0: samples")
    greedy: bool = Field(default=False, description="also one greedy answer to each problem")
    temperature: float | None = Field(default=None, ge=0, description="of sampling; null: rollout.temperature; 0: one greedy answer")
    top_p: float = Field(default=1.0, gt=0, le=1, description="sample from the likeliest tokens that hold this much probability")
    max_new_tokens: int | None = Field(default=None, ge=1, description="longest answer in tokens; null: rollout.max_new_tokens")

    @property
    def source(self) -> DataSource:
        """The file's rows, as a source of data.train."""
        return DataSource(path=self.path, part="", **{name: getattr(self, name) for name in _OF_SOURCES})

    @field_validator("name")
    @classmethod
    def _names_metrics(cls, name: str) -> str:
        if not _SET_NAME.fullmatch(name):
            raise ValueError("must be 1 to 60 letters, digits, _ . or -, a letter or digit in front")
        return name

    @model_validator(mode="after")
    def _says_one_thing(self) -> "ValidationSet":
        where = f"validation.sets, set {self.name}"
        if self.path and self.task:
            raise ValueError(f"{where}: path={self.path} and task={self.task}; name a file or a task")
        if self.path:
            self.source  # noqa: B018 - its own checks
        elif unread := [name for name, default in _OF_FILES.items() if getattr(self, name) != default]:
            raise ValueError(f"{where}: {', '.join(unread)} is about a file; name one by path")
        if self.options and not self.task:
            raise ValueError(f"{where}: options are a task's; name it by task")
        if self.temperature == 0 and self.samples > 1:
            raise ValueError(f"{where}: temperature=0 gives one answer; set samples=1, or greedy=true beside samples at a temperature")
        if self.pass_at > self.samples:
            raise ValueError(f"{where}: pass_at={self.pass_at} needs as many samples; there are {self.samples}")
        return self


@dataclass(frozen=True, config=STRICT)
class ValidationConfig:
    """Scores on sets of problems while the policy is trained. docs/validation.md."""

    every: int = Field(default=0, ge=0, description="validate after every so many steps, and at the end; 0: never")
    at_start: bool = Field(default=False, description="also before the first step")
    sets: tuple[ValidationSet, ...] = Field(
        default=(),
        description=f"sets of problems: presets ({', '.join(PRESETS)}), or {{name: NAME, path: FILE, ...}}; docs/validation.md",
    )
    best: str = Field(
        default="",
        description="metric such as validation/NAME/avg: the checkpoint that is best by it is saved and kept beside the newest",
    )

    @field_validator("sets", mode="before")
    @classmethod
    def _with_presets(cls, given: Any) -> Any:
        given = [given] if isinstance(given, str | dict) else given
        return tuple(with_preset(each) for each in given) if isinstance(given, list | tuple) else given

    @model_validator(mode="after")
    def _is_consistent(self) -> "ValidationConfig":
        names = [each.name for each in self.sets]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"validation.sets: two sets are called {twice}; their metrics would be the same")
        if self.every and not self.sets:
            raise ValueError(f"validation.every={self.every}, but validation.sets is empty; name one, such as [{next(iter(PRESETS))}]")
        if not self.every and (self.at_start or self.best):
            asked = "validation.at_start=true" if self.at_start else f"validation.best={self.best}"
            raise ValueError(f"{asked}, but validation.every=0 validates never; set it")
        if self.best:
            self._check_best(names)
        return self

    def with_tasks(self, known: Callable[[str], str]) -> "ValidationConfig":
        """The same with each set's task as `known` returns it. Raises ValueError naming the set whose task it refuses."""
        return replace(self, sets=tuple(_with_task(each, known) for each in self.sets))

    def _check_best(self, names: list[str]) -> None:
        root, _, rest = self.best.partition("/")
        name, _, statistic = rest.rpartition("/")
        if root != "validation" or name not in names or statistic not in HIGHER_IS_BETTER:
            raise ValueError(
                f"validation.best={self.best}: must be validation/NAME/STATISTIC with NAME of {', '.join(names)} and STATISTIC of "
                f"{', '.join(HIGHER_IS_BETTER)}"
            )
        if statistic == "greedy" and not next(each for each in self.sets if each.name == name).greedy:
            raise ValueError(f"validation.best={self.best}: set {name} has no greedy answers; give it greedy=true")


def _with_task(settings: ValidationSet, known: Callable[[str], str]) -> ValidationSet:
    try:
        return replace(settings, task=known(settings.task)) if settings.task else settings
    except ValueError as error:
        raise ValueError(f"validation.sets, set {settings.name}: task={settings.task} {error}") from None


def with_preset(given: Any) -> Any:
    """A set's settings as given, over those of the preset of its name. Raises ValueError for a name alone that is no preset's."""
    if isinstance(given, str):
        if given not in PRESETS:
            close = difflib.get_close_matches(given, PRESETS, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(
                f"{given!r} is no preset{hint} (there are {', '.join(PRESETS)}); a set of yours: {{name: {given}, path: FILE}}"
            )
        return {"name": given, **PRESETS[given]}
    if not isinstance(given, Mapping):
        return given
    preset: dict[str, Any] = dict(PRESETS.get(given.get("name", ""), {}))
    if given.get("path") and given["path"] != preset.get("path"):
        preset = {name: value for name, value in preset.items() if name not in (*_OF_THE_HUB, "task", "options")}
    if given.get("task"):
        preset = {}
    return {**preset, **given}
