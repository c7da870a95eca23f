"""Prompts and verifiable rewards: one small module per kind of task, one table."""

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

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
    """The task `cfg.name` with its `options`; `seed` (>= 0) chooses the stream of problems.

    Raises ValueError naming a bad option, or a task of the user's that cannot be imported.
    """
    task: Task = _factory(cfg.name)(cfg.options, seed)
    return task


def _factory(name: str) -> Callable[..., Task]:
    """The function behind `task.name`. A user's module may lie in the working directory, as for the ranks (`python -m`)."""
    module, _, function = FACTORIES.get(name, name).partition(":")
    here = str(Path.cwd())
    if name not in FACTORIES and here not in sys.path:
        sys.path.append(here)
    try:
        found: Callable[..., Task] = getattr(import_module(module), function)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):  # the module is there, but not what it needs
            raise ValueError(f"task.name={name}: {module} needs the package {error.name}, which is not installed") from error
        raise ValueError(f"task.name={name}: no module {module} in {here} or on PYTHONPATH") from None
    except AttributeError:
        raise ValueError(f"task.name={name}: {module} has no function {function}") from None
    return found


def verifier_spec(cfg: TaskConfig, seed: int, task: Task) -> VerifierSpec | None:
    """How another process makes the verifier of `task`, which is make_task(cfg, seed); None when it is to be called directly."""
    if getattr(task, "inline", False):
        return None
    return VerifierSpec(getattr(task, "verifier", FACTORIES.get(cfg.name, cfg.name)), cfg.options, seed)


__all__ = ["FACTORIES", "Problem", "Task", "Verifier", "make_task", "verifier_spec"]
