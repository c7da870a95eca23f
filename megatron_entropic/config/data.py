"""The settings of the data that `task.name=data` asks: sources, what of them is asked, and the curriculum."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator
from pydantic.dataclasses import dataclass

from megatron_entropic.config.control import STRICT

DATA_TASK = "data"
"""The task that reads `data.train`."""


@dataclass(frozen=True, config=STRICT)
class VerifierPart:
    """One of several verifiers of a source."""

    name: str = Field(description="which verifier")
    weight: float = Field(default=1.0, ge=-1e6, le=1e6, description="its part of the score, relative to the others; below 0: a penalty")
    options: dict[str, Any] = Field(default_factory=dict, description="its options")
    label: str = Field(default="", description="what its part is called; by default its name")


@dataclass(frozen=True, config=STRICT)
class DataSource:
    """One source of prompts and how its rows are read."""

    path: str = Field(
        description="JSON Lines (also gzipped), Parquet or Arrow file, a folder of such files, what datasets.save_to_disk wrote, or "
        "a name on the Hugging Face hub"
    )
    weight: float = Field(default=1.0, gt=0, description="how often it is drawn, relative to the other sources")
    verifier: str | tuple[VerifierPart, ...] = Field(
        default="",
        description="judges its answers, or several of {name, weight, options}; by default the row's field `verifier`, else what the "
        "row's format says, else math",
    )
    verifier_options: dict[str, Any] = Field(default_factory=dict, description="options of the verifier")
    prompt_field: str = Field(default="", description="field of the prompt, text or a chat; a.b is b of field a; '' recognises it")
    answer_field: str = Field(default="", description="field of the known answer; '' recognises it")
    prompt_template: str = Field(default="{prompt}", description="text of the (last) user's message; {prompt} is the row's")
    system: str = Field(default="", description="system prompt, in place of the row's own; needs task.chat_template")
    template_options: dict[str, Any] = Field(
        default_factory=dict, description="arguments of the chat template, such as {enable_thinking: false}"
    )
    filter: str = Field(default="", description="expression on the row's fields; rows for which it is false are left out")
    split: str = Field(default="train", description="split of a DatasetDict's folder or of a data set on the hub")
    subset: str = Field(default="", description="configuration of a data set on the hub")
    part: Literal["", "train", "held_out", "all"] = Field(
        default="", description="which rows, by the hash of their prompts (data.held_out): '' is what data.part says"
    )
    limit: int = Field(default=0, ge=0, description="the first so many rows that are left by everything else; 0: all")

    @field_validator("path")
    @classmethod
    def _names_something(cls, path: str) -> str:
        if not path.strip():
            raise ValueError("needed: a file, a folder, or a name on the hub")
        return path

    @field_validator("prompt_template")
    @classmethod
    def _holds_the_prompt(cls, template: str) -> str:
        if "{prompt}" not in template:
            raise ValueError("must contain {prompt}")
        return template

    @model_validator(mode="after")
    def _options_have_their_verifier(self) -> "DataSource":
        if self.verifier_options and not (isinstance(self.verifier, str) and self.verifier):
            raise ValueError("verifier_options belong to one verifier; name it by verifier, or give each of several its own options")
        return self


def _as_list(given: Any) -> Any:
    """A path or a source alone stands for the list of it."""
    listed = [given] if isinstance(given, str | dict | DataSource) else given
    return [{"path": item} if isinstance(item, str) else item for item in listed] if isinstance(listed, list | tuple) else listed


Sources = Annotated[tuple[DataSource, ...], BeforeValidator(_as_list)]
"""Sources; a text stands for the source of that path."""


@dataclass(frozen=True, config=STRICT)
class DataConfig:
    """Data of `task.name=data`: docs/data.md."""

    train: Sources = Field(
        default=(),
        description="sources, mixed by weight: a list of paths, or of {path, weight, verifier, prompt_field, answer_field, system, "
        "filter, ...}: docs/data.md",
    )
    held_out: float = Field(
        default=0.0, ge=0, lt=1, description="fraction of the prompts that is never trained on, chosen by a hash of the prompt"
    )
    part: Literal["train", "held_out", "all"] = Field(
        default="train", description="what the sources give: the rows to train on, those held out, or all"
    )
    deduplicate: bool = Field(default=False, description="of rows with the same prompt, over all sources, only the first is asked")
    min_prompt_tokens: int = Field(default=0, ge=0, description="shorter prompts are left out, counted by the policy's tokenizer")
    max_prompt_tokens: int = Field(default=0, ge=0, description="longer prompts are left out; 0: see task.overlong_prompts")
    curriculum: bool = Field(
        default=False, description="draw prompts less often that were all right or all wrong when they were last asked"
    )
    curriculum_low: float = Field(default=0.0, ge=0, le=1, description="mean reward of a prompt's samples that counts as all wrong")
    curriculum_high: float = Field(default=1.0, ge=0, le=1, description="the same of all right")
    curriculum_keep: float = Field(
        default=0.25, ge=0.01, le=1, description="how often such a prompt is still taken when its turn comes, as a fraction"
    )

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> "DataConfig":
        if self.curriculum_low >= self.curriculum_high:
            raise ValueError(
                f"data.curriculum_low={self.curriculum_low:g} must be below data.curriculum_high={self.curriculum_high:g}: "
                "between them lies what is worth asking"
            )
        if self.max_prompt_tokens and self.min_prompt_tokens > self.max_prompt_tokens:
            raise ValueError(
                f"data.min_prompt_tokens={self.min_prompt_tokens} is above data.max_prompt_tokens={self.max_prompt_tokens}"
            )
        if self.part == "held_out" and not self.held_out:
            raise ValueError("data.part=held_out needs data.held_out, such as 0.1")
        return self
