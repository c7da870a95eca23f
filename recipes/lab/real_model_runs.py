"""Runs of the real-model lab with all their settings: a plan for each model, and its runs, the most telling first."""

from dataclasses import dataclass
from fnmatch import fnmatch

from megatron_entropic.config import Config
from megatron_entropic.config.loading import ConfigError, load_config
from recipes.lab.held_out_sums import make

SEEDS = 2
"""Every run has a seed below this one; the held-out sums are those that none of the seeds asks."""


@dataclass(frozen=True)
class RealRun:
    """One run. `target`: what the entropy is held against, in multiples of the entropy before the first update; None: nothing.

    A run that is not `trained` is the model as it was, scored beside the others.
    """

    name: str
    title: str
    target: float | None
    seed: int
    overrides: tuple[str, ...] = ()
    trained: bool = True


@dataclass(frozen=True)
class Plan:
    """A model's runs. `overrides` are settings of all of them, after their own; `hint` says how to get the model; `title`, `about`
    and `notes` are for the page.
    """

    model: str
    recipe: str
    hint: str
    title: str
    about: str
    notes: tuple[str, ...]
    runs: tuple[RealRun, ...]
    overrides: tuple[str, ...] = ()
    updates: int = 60
    problems: int = 64
    samples: int = 8
    checkpoint_every: int = 10

    @property
    def late_from(self) -> int:
        """The update, counted from 1, from which on a run's level is measured: the second half."""
        return self.updates // 2

    @property
    def calm_after(self) -> int:
        """The update after which excursions count; of 60 it is the 25th."""
        return self.updates * 25 // 60

    def settings(self, run: RealRun) -> list[str]:
        """The run's overrides of the recipe."""
        return [
            "trainer.tensorboard=false",
            f"trainer.steps={self.updates}",
            f"trainer.seed={run.seed}",
            f"checkpoint.every={self.checkpoint_every}",
            "checkpoint.keep=1",
            *run.overrides,
            *self.overrides,
        ]

    def config(self, run: RealRun) -> Config:
        """The run's settings, without a folder of its own. Raises ConfigError."""
        return load_config(self.recipe, self.settings(run))

    def held_out(self) -> list[str]:
        """Overrides that have a run's policy asked sums of its own task that no run was trained on. Raises ConfigError."""
        cfg = self.config(self.runs[0])
        if cfg.task.name != "addition":
            raise ConfigError(f"task.name={cfg.task.name}: the lab holds out sums, so the task must be addition")
        options = {**cfg.task.options, "trained_seeds": SEEDS, "trained_problems": self.updates * cfg.batch.prompts_per_step}
        if (left := len(make(options, 0).held_out)) < self.problems:
            raise ConfigError(f"only {left} sums are left that no run is trained on, {self.problems} are needed; take fewer updates")
        return ["task.name=recipes.lab.held_out_sums:make", *(f"task.options.{name}={value}" for name, value in options.items())]

    def choose(self, patterns: list[str]) -> list[RealRun]:
        """The runs whose name matches any of the patterns, or all without one. Raises ConfigError for one that nothing matches."""
        for pattern in patterns:
            if not any(fnmatch(run.name, pattern) for run in self.runs):
                raise ConfigError(f"--only {pattern}: no such run; there are {', '.join(run.name for run in self.runs)}")
        return [run for run in self.runs if not patterns or any(fnmatch(run.name, pattern) for pattern in patterns)]


def _ours(target: float, seed: int) -> RealRun:
    return RealRun(f"ours-{target:.1f}-seed{seed}", "ours (default settings)", target, seed, (f"control.target_entropy={target}",))


AENT = (
    "control.preset=aent_released",
    "control.entropy_low=1.93",
    "control.entropy_high=2.13",
    "control.coefficient=2e-3",
    "control.coefficient_lr=1e-2",
    "control.coefficient_min=1e-4",
    "control.coefficient_max=3e-2",
    "control.coefficient_warmup_steps=5",
)
AENT_WHY = (
    "AEnt as released aims at 0.05 to 0.23 nats. This model begins at 2.03, so c would go to its minimum and stay: GRPO. Here its "
    "band is 1.93 to 2.13 nats, the start and 5% to both sides. All four coefficients are 10 times the released ones, so that the "
    "largest, 0.03, is worth about one unit of alpha by the hand-off's own measure at the first update; c moves after 5 updates "
    "instead of 29, of 60. The rest is as released. Its target in the table is 1 x the start, the middle of its band."
)
"""Chosen before any run under it: AEnt's settings that the comparison needs, and why."""

SMOLLM2_135M = Plan(
    model="smollm2_135m",
    recipe="smollm2_135m",
    hint="python -m recipes.smollm2",
    title="SmolLM2-135M-Instruct",
    about="SmolLM2-135M-Instruct (fp32), the recipe `smollm2_135m`",
    notes=(AENT_WHY,),
    runs=(
        RealRun("start", "the model as it was", None, 0, trained=False),
        _ours(1.0, 0),
        RealRun("grpo-seed0", "GRPO", None, 0, ("control.kind=none",)),
        _ours(0.8, 0),
        _ours(0.6, 0),
        RealRun("aent-seed0", "AEnt, band around the start", 1.0, 0, AENT),
        _ours(1.0, 1),
        _ours(0.8, 1),
    ),
)
PLANS = {plan.model: plan for plan in (SMOLLM2_135M,)}
