"""Every setting of a run, as typed, bounded, documented dataclasses. One `Config` describes one run.

A field's bounds and description live in the field itself, so the error for a bad value, `--help` and the reference page
all say the same. Unknown names are refused everywhere. How a Config is read, overridden and saved: loading.py.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator
from pydantic.dataclasses import dataclass

from megatron_entropic.config.alerts import AlertsConfig as AlertsConfig
from megatron_entropic.config.control import STRICT
from megatron_entropic.config.control import ControlConfig as ControlConfig
from megatron_entropic.config.data import DATA_TASK
from megatron_entropic.config.data import DataConfig as DataConfig
from megatron_entropic.config.parallel import ParallelConfig as ParallelConfig
from megatron_entropic.config.profiling import ProfileConfig as ProfileConfig
from megatron_entropic.config.reward import RewardConfig as RewardConfig
from megatron_entropic.config.rollout import RolloutConfig as RolloutConfig
from megatron_entropic.config.rollout import expanded
from megatron_entropic.config.tracking import TrackingConfig as TrackingConfig
from megatron_entropic.config.validation import ValidationConfig as ValidationConfig
from megatron_entropic.system.named_functions import FORMS, check_name

LONGEST_NAME = 80
"""Characters of a run's name."""


@dataclass(frozen=True, config=STRICT)
class RunConfig:
    """Name and folder of a run."""

    name: str = Field(default="run", description="name of the run; names its folder: no / in it, and no - . ~ or space in front")
    dir: Path | None = Field(default=None, description="folder of the run; default runs/<name>")

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        fits = 0 < len(name) <= LONGEST_NAME and name.isprintable() and name == name.strip()
        if not fits or "/" in name or name[0] in "-.~":
            raise ValueError(f"must name a folder: 1 to {LONGEST_NAME} printable characters, no / in it, no - . ~ or space in front")
        return name

    @field_validator("dir")
    @classmethod
    def _in_the_home(cls, path: Path | None) -> Path | None:
        return expanded(path)


@dataclass(frozen=True, config=STRICT)
class ModelConfig:
    """The policy network."""

    hf_path: Path = Field(
        default=Path("models/tiny-decompose"),
        description="Hugging Face directory (config.json, safetensors, tokenizer), or a distributed checkpoint as checkpoint_tools "
        "import and runs write it",
    )
    dtype: Literal["float32", "bfloat16"] = Field(default="bfloat16", description="type of weights and activations; masters are fp32")
    layer_spec: Literal["auto", "local", "transformer_engine"] = Field(
        default="auto", description="layer implementation; auto takes Transformer Engine when it can be imported and a GPU is there"
    )
    grouped_experts: bool = Field(
        default=True,
        description="an MoE model's experts of a rank in one grouped product instead of one by one; Transformer Engine's layers only",
    )
    gradient_accumulation_fusion: bool = Field(
        default=True,
        description="weight gradients are added to their fp32 buffer by the product that makes them; Transformer Engine's layers only",
    )
    fp8: Literal["none", "tensorwise", "blockwise", "mxfp8"] = Field(
        default="none",
        description="products of the layers in 8 bits, with a scale for each tensor, each block of 128, or each 32 values; weights "
        "stay bfloat16. Transformer Engine's layers, on GPUs that have it",
    )
    vocab_pad_multiple: int = Field(
        default=128, ge=1, description="the embedding is padded to a multiple of this times parallel.tensor"
    )
    recompute: Literal["none", "selective", "full"] = Field(
        default="none",
        description="what the backward pass computes again instead of keeping it: nothing, the MLPs or experts (about half of the "
        "activations), or whole layers; docs/choosing_a_layout.md",
    )

    @field_validator("hf_path")
    @classmethod
    def _in_the_home(cls, path: Path) -> Path:
        return expanded(path) or path


@dataclass(frozen=True, config=STRICT)
class BatchConfig:
    """Number of rollouts of a step, and their split into updates."""

    prompts_per_step: int = Field(default=64, ge=1, description="prompts drawn each step")
    samples_per_prompt: int = Field(default=8, ge=1, description="rollouts of each prompt; the group of a GRPO advantage")
    mini_batches: int = Field(default=1, ge=1, description="optimizer updates per step; 1 is on-policy")
    max_tokens_per_micro_batch: int = Field(
        default=4096, ge=8, description="packed tokens (prompt + response) of one forward pass per rank"
    )

    @model_validator(mode="after")
    def _mini_batches_hold_whole_groups(self) -> "BatchConfig":
        if self.prompts_per_step % self.mini_batches:
            raise ValueError(
                f"batch.prompts_per_step={self.prompts_per_step} must be a multiple of batch.mini_batches={self.mini_batches}"
            )
        return self


ADVANTAGES = {
    "grpo": "megatron_entropic.algorithms.advantages:group_advantages",
    "grpo_no_std": "megatron_entropic.algorithms.advantages:centred_advantages",
    "rloo": "megatron_entropic.algorithms.advantages:leave_one_out_advantages",
}
"""The advantages that come with the project, by name; imported when they are used."""
ADVANTAGE_ENTRY_POINTS = "megatron_entropic.advantages"
AdvantageName = Annotated[str, AfterValidator(lambda name: check_name(name, ADVANTAGES, ADVANTAGE_ENTRY_POINTS))]


POLICY_LOSSES = {"ppo": "megatron_entropic.algorithms.policy_loss:clipped_policy_loss"}
"""The policy losses that come with the project, by name; imported when they are used."""
POLICY_LOSS_ENTRY_POINTS = "megatron_entropic.policy_losses"
PolicyLossName = Annotated[str, AfterValidator(lambda name: check_name(name, POLICY_LOSSES, POLICY_LOSS_ENTRY_POINTS))]


@dataclass(frozen=True, config=STRICT)
class AlgorithmConfig:
    """The policy-gradient part of the loss."""

    advantage: AdvantageName = Field(
        default="grpo",
        description="grpo: relative to the group, over its std; grpo_no_std: without; rloo: against the group's others; or "
        f"{FORMS} of yours: rewards [prompts, samples] to advantages",
    )
    policy_loss: PolicyLossName = Field(
        default="ppo",
        description=f"loss of a response token from its ratio and advantage: {', '.join(POLICY_LOSSES)} (the clipped objective), or "
        f"{FORMS} of yours",
    )
    clip_low: float = Field(default=0.2, gt=0, lt=1, description="ratio is clipped below 1 - clip_low")
    clip_high: float = Field(default=0.2, gt=0, description="ratio is clipped above 1 + clip_high; larger than clip_low is clip-higher")
    sampler_correction_cap: float = Field(
        default=0.0,
        ge=0,
        description="truncate exp(trainer log-prob - sampler log-prob) at this and weight the loss with it; 0 is off: with "
        "rollout.max_staleness > 0 the clipped ratio is then to the sampler instead of to the policy before the step",
    )


@dataclass(frozen=True, config=STRICT)
class OptimizerConfig:
    """AdamW and its learning-rate schedule."""

    lr: float = Field(default=1e-6, gt=0, description="peak learning rate")
    min_lr: float = Field(default=0.0, ge=0, description="learning rate at the end of the decay")
    schedule: Literal["constant", "linear", "cosine"] = Field(default="constant", description="shape of the decay after the warm-up")
    warmup_updates: int = Field(default=0, ge=0, description="optimizer updates of linear warm-up")
    beta1: float = Field(default=0.9, ge=0, lt=1, description="Adam's beta1")
    beta2: float = Field(default=0.95, ge=0, lt=1, description="Adam's beta2")
    eps: float = Field(default=1e-8, gt=0, description="Adam's epsilon")
    weight_decay: float = Field(default=0.0, ge=0, description="decoupled weight decay")
    clip_grad: float = Field(default=1.0, ge=0, description="clip the global gradient norm to this; 0 is off")


TRACKERS = {
    "tensorboard": "megatron_entropic.observability.trackers.tensorboard:TensorBoardTracker",
    "wandb": "megatron_entropic.observability.trackers.weights_and_biases:WandbTracker",
    "mlflow": "megatron_entropic.observability.trackers.mlflow_store:MLflowTracker",
}
"""The trackers that come with the project: by name what makes one of (run folder, run_id, first step, the Config)."""
TRACKER_ENTRY_POINTS = "megatron_entropic.trackers"

TASKS = {
    "decompose": "megatron_entropic.tasks.decompose:make_decompose",
    "addition": "megatron_entropic.tasks.addition:make_addition",
    "reasoning_gym": "megatron_entropic.tasks.reasoning_gym:make_reasoning_gym",
    "math": "megatron_entropic.tasks.math:make_math",
    "data": "megatron_entropic.tasks.data:make_data",
}
"""The tasks that come with the project: by name the function that makes one of (options, seed); imported when it is used."""
TASK_ENTRY_POINTS = "megatron_entropic.tasks"
"""Group of entry points by which an installed package brings tasks of its own."""
TaskName = Annotated[str, AfterValidator(lambda name: check_name(name, TASKS, TASK_ENTRY_POINTS))]


@dataclass(frozen=True, config=STRICT)
class TaskConfig:
    """Prompts and the verifiable reward."""

    name: TaskName = Field(
        default="decompose",
        description=f"which task: {', '.join(TASKS)}, one of an installed package, or {FORMS} that makes one of yours; "
        "docs/your_model_your_task.md",
    )
    options: dict[str, Any] = Field(default_factory=dict, description="options of the task; see its module in tasks/")
    chat_template: bool = Field(default=False, description="wrap prompts in the tokenizer's chat template")
    overlong_prompts: Literal["refuse", "drop", "truncate"] = Field(
        default="refuse",
        description="prompts that leave no room for rollout.max_new_tokens in the model's context or in a micro-batch: refused at the "
        "start, left out, or cut in their middle",
    )


@dataclass(frozen=True, config=STRICT)
class TrainerConfig:
    """The loop."""

    steps: int = Field(default=100, ge=0, description="steps of the loop: generate, score, update, sync")
    seed: int = Field(default=0, ge=0, description="seeds prompts, sampling and dropout")
    deterministic: bool = Field(
        default=False,
        description="the same bits from the same work on GPUs, which bit-for-bit resume needs there; slower. CPUs need no setting",
    )
    export_hf: bool = Field(default=True, description="write the final policy as a Hugging Face directory under hf/")
    tensorboard: bool = Field(default=True, description="write TensorBoard events under logs/tensorboard")
    report: bool = Field(
        default=True,
        description="draw report.html and plots/ when training ends; `megatron-entropic report RUN_DIR` draws them at any time",
    )
    trackers: tuple[str, ...] = Field(
        default=(),
        description=f"further trackers that each step's metrics go to: {', '.join(TRACKERS)}, of installed packages, or {FORMS} of "
        "yours; docs/trackers.md",
    )

    @field_validator("trackers")
    @classmethod
    def _known_or_importable(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(check_name(name, TRACKERS, TRACKER_ENTRY_POINTS) for name in names)


@dataclass(frozen=True, config=STRICT)
class CheckpointConfig:
    """Training checkpoints, from which an interrupted run resumes."""

    every: int = Field(default=50, ge=0, description="save every so many steps, and at the end; 0: only when a signal stops the run")
    keep: int = Field(default=2, ge=0, description="newest checkpoints to keep; 0 keeps all")
    asynchronous: bool = Field(
        default=True, description="write while training continues: a step waits only until the state is copied to host memory"
    )
    grace_s: float = Field(
        default=60.0,
        gt=0,
        description="after SIGTERM, SIGUSR1, SIGHUP or Ctrl-C: time to save and end in, or else it ends without saving",
    )


@dataclass(frozen=True, config=STRICT)
class Config:
    """One run."""

    run: RunConfig = Field(default_factory=RunConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    parallel: ParallelConfig = Field(default_factory=ParallelConfig)
    batch: BatchConfig = Field(default_factory=BatchConfig)
    algorithm: AlgorithmConfig = Field(default_factory=AlgorithmConfig)
    control: ControlConfig = Field(default_factory=ControlConfig)
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    rollout: RolloutConfig = Field(default_factory=RolloutConfig)
    task: TaskConfig = Field(default_factory=TaskConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    reward: RewardConfig = Field(default_factory=RewardConfig)
    trainer: TrainerConfig = Field(default_factory=TrainerConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    validation: ValidationConfig = Field(default_factory=ValidationConfig)
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)
    alerts: AlertsConfig = Field(default_factory=AlertsConfig)
    profile: ProfileConfig = Field(default_factory=ProfileConfig)

    @property
    def run_dir(self) -> Path:
        return self.run.dir or Path("runs") / self.run.name

    @field_validator("validation")
    @classmethod
    def _sets_have_known_tasks(cls, validation: ValidationConfig) -> ValidationConfig:
        return validation.with_tasks(lambda name: check_name(name, TASKS, TASK_ENTRY_POINTS))

    @model_validator(mode="after")
    def _replay_has_a_path(self) -> "Config":
        if self.rollout.engine == "replay" and self.rollout.replay_path is None:
            raise ValueError("rollout.engine=replay needs rollout.replay_path=RUN_DIR/rollouts")
        return self

    @model_validator(mode="after")
    def _recorded_rollouts_cannot_be_validated(self) -> "Config":
        if self.rollout.engine == "replay" and self.validation.every:
            raise ValueError("rollout.engine=replay samples nothing, so nothing can be validated; set validation.every=0")
        return self

    @model_validator(mode="after")
    def _data_is_read(self) -> "Config":
        if self.data.train and self.task.name != DATA_TASK:
            raise ValueError(f"data.train is given, but task.name={self.task.name} does not read it; say task.name={DATA_TASK}")
        return self

    @model_validator(mode="after")
    def _room_before_the_overlong_buffer(self) -> "Config":
        if self.reward.overlong_buffer >= self.rollout.max_new_tokens:
            raise ValueError(
                f"reward.overlong_buffer={self.reward.overlong_buffer} must be below rollout.max_new_tokens="
                f"{self.rollout.max_new_tokens}: it is the last part of them"
            )
        return self

    @model_validator(mode="after")
    def _profiled_ranks_exist(self) -> "Config":
        if max(self.profile.ranks) >= self.parallel.world_size and self.profile.steps:
            raise ValueError(f"profile.ranks={list(self.profile.ranks)}: the layout has ranks 0 to {self.parallel.world_size - 1}")
        return self
