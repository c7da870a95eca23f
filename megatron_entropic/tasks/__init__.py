"""Prompts and verifiable rewards: one small module per kind of task, one table."""

from collections.abc import Callable

from megatron_entropic.config import DataConfig, TaskConfig
from megatron_entropic.config.data import DATA_TASK
from megatron_entropic.config.schema import TASK_ENTRY_POINTS
from megatron_entropic.config.schema import TASKS as FACTORIES
from megatron_entropic.system.named_functions import named_function, raised, reference_of
from megatron_entropic.tasks.task import Problem, Task, Verifier
from megatron_entropic.tasks.verification import VerifierSpec


def make_task(cfg: TaskConfig, seed: int, data: DataConfig | None = None) -> Task:
    """The task `cfg.name` with its `options`; `seed` (>= 0) chooses the stream of problems, `data` is what the data task reads.

    Raises ValueError naming a bad option, or a task of the user's that cannot be imported.
    """
    make: Callable[..., Task] = named_function("task.name", cfg.name, FACTORIES, TASK_ENTRY_POINTS)
    if cfg.name == DATA_TASK:
        return make(cfg.options, seed, data or DataConfig())
    if cfg.name in FACTORIES:
        return make(cfg.options, seed)
    try:
        return make(cfg.options, seed)
    except (Exception, SystemExit) as error:
        raise ValueError(f"task.name={cfg.name}: {raised(error)}") from error


def verifier_spec(cfg: TaskConfig, seed: int, task: Task) -> VerifierSpec | None:
    """Spec of the verifier of `task`, made by make_task(cfg, seed), for another process; None when it is to be called directly."""
    if getattr(task, "inline", False):
        return None
    factory = getattr(task, "verifier", reference_of(cfg.name, FACTORIES, TASK_ENTRY_POINTS))
    return VerifierSpec(factory, getattr(task, "verifier_options", cfg.options), seed)


__all__ = ["FACTORIES", "Problem", "Task", "Verifier", "make_task", "verifier_spec"]
