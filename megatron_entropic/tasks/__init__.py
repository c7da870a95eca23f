"""Prompts and verifiable rewards: one small module per kind of task, one table."""

from megatron_entropic.config import TASK_ENTRY_POINTS, TaskConfig
from megatron_entropic.system.named_functions import entry_point, named_function
from megatron_entropic.tasks.task import Problem, Task, Verifier
from megatron_entropic.tasks.verification import VerifierSpec

FACTORIES = {
    "addition": "megatron_entropic.tasks.addition:make_addition",
    "decompose": "megatron_entropic.tasks.decompose:make_decompose",
    "math": "megatron_entropic.tasks.math:make_math",
    "reasoning_gym": "megatron_entropic.tasks.reasoning_gym:make_reasoning_gym",
}
"""By `task.name`: the function that makes the task of (options, seed). Modules are imported when first used."""


def make_task(cfg: TaskConfig, seed: int) -> Task:
    """The task `cfg.name` with its `options`; `seed` (>= 0) chooses the stream of problems.

    Raises ValueError naming a bad option, or a task of the user's that cannot be imported.
    """
    task: Task = named_function("task.name", cfg.name, FACTORIES, TASK_ENTRY_POINTS)(cfg.options, seed)
    return task


def verifier_spec(cfg: TaskConfig, seed: int, task: Task) -> VerifierSpec | None:
    """How another process makes the verifier of `task`, which is make_task(cfg, seed); None when it is to be called directly."""
    if getattr(task, "inline", False):
        return None
    factory = FACTORIES.get(cfg.name) or entry_point(cfg.name, TASK_ENTRY_POINTS) or cfg.name
    return VerifierSpec(getattr(task, "verifier", factory), cfg.options, seed)


__all__ = ["FACTORIES", "Problem", "Task", "Verifier", "make_task", "verifier_spec"]
