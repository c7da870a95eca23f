"""Cases of the lab: methods x tasks x settings x targets x seeds."""

from dataclasses import dataclass
from fnmatch import fnmatch

TASKS = {
    "decompose": (),
    "addition": ("task.name=addition", "model.hf_path=models/tiny-addition"),
}
"""Many right answers to a prompt, and exactly one."""

SETTINGS = {
    "on": ("trainer.steps=120",),
    "off": ("trainer.steps=50", "batch.mini_batches=4"),
}
"""On-policy, and off-policy: four updates on each batch."""

TARGETS = (0.8, 0.95, 1.05)
"""In multiples of the entropy before the first update."""


@dataclass(frozen=True)
class Method:
    """A way to train, the targets it runs with (None: it has none), and its number of seeds."""

    title: str
    overrides: tuple[str, ...]
    targets: tuple[float | None, ...]
    seeds: int


METHODS = {
    "grpo": Method("GRPO", ("control.kind=none",), (None,), 3),
    "handoff": Method("ours (default settings)", (), (0.8, 0.95, 1.0, 1.05), 3),
    "exact": Method("ours, exact actuator", ("control.actuator=exact",), TARGETS, 1),
    "alpha_only": Method("ours without hand-off", ("control.handoff=false",), TARGETS, 3),
    "released": Method("EntroPIC as released", ("control.preset=entropic_released",), TARGETS, 3),
    "fixed": Method("ours, gains as released", ("control.gains=fixed", "control.handoff=false"), TARGETS, 1),
    "aent": Method("AEnt as released", ("control.preset=aent_released",), (None,), 1),
    "aec": Method("AEC", ("control.kind=aec",), TARGETS, 1),
    "nsr": Method("NSR, positives x 0.1", ("control.kind=nsr",), (None,), 1),
    "clip_cov": Method("Clip-Cov", ("control.kind=clip_cov",), (None,), 1),
    "bonus": Method("constant bonus 0.1", ("control.kind=entropy_bonus", "control.coefficient=0.1"), (None,), 1),
}
BASE = (
    "rollout.engine=local",
    "parallel.tensor=1",
    "batch.prompts_per_step=32",
    "trainer.tensorboard=false",
)


@dataclass(frozen=True)
class Case:
    """One run of the lab. `target` is None for methods without one."""

    task: str
    setting: str
    method: str
    target: float | None
    seed: int

    @property
    def name(self) -> str:
        target = "" if self.target is None else f"-{self.target:g}"
        return f"{self.task}-{self.setting}-{self.method}{target}-{self.seed}"

    @property
    def overrides(self) -> list[str]:
        """For load_config("quickstart")."""
        parts = [*BASE, *TASKS[self.task], *SETTINGS[self.setting], *METHODS[self.method].overrides, f"trainer.seed={self.seed}"]
        # After the preset, which has a target of its own.
        return [*parts, f"control.target_entropy={self.target}", "control.target_unit=initial"] if self.target is not None else parts


def all_cases(pattern: str = "*") -> list[Case]:
    """The cases whose name matches, the first seeds of the most important methods first."""
    cases = [
        Case(task, setting, name, target, seed)
        for seed in range(max(method.seeds for method in METHODS.values()))
        for name, method in METHODS.items()
        for setting in SETTINGS
        for task in TASKS
        for target in method.targets
        if seed < method.seeds
    ]
    return [case for case in cases if fnmatch(case.name, pattern)]
