"""Prompts and verifiable rewards: one small module per kind of task, one table."""

from importlib import import_module

from megatron_entropic.config import TaskConfig
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
    """The task `cfg.name` with its `options`; `seed` (>= 0) chooses the stream of problems. Raises ValueError naming a bad option."""
    module, _, function = FACTORIES[cfg.name].partition(":")
    task: Task = getattr(import_module(module), function)(cfg.options, seed)
    return task


def verifier_spec(cfg: TaskConfig, seed: int, task: Task) -> VerifierSpec | None:
    """How another process makes the verifier of `task`, which is make_task(cfg, seed); None when it is to be called directly."""
    if getattr(task, "inline", False):
        return None
    return VerifierSpec(getattr(task, "verifier", FACTORIES[cfg.name]), cfg.options, seed)


__all__ = ["FACTORIES", "Problem", "Task", "Verifier", "make_task", "verifier_spec"]
