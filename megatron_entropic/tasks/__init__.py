"""Prompts and verifiable rewards: one small module per kind of task, one factory."""

from megatron_entropic.config import TaskConfig
from megatron_entropic.tasks.task import Problem, Task


def make_task(cfg: TaskConfig, seed: int) -> Task:
    """The task `cfg.name` with its `options`; `seed` (>= 0) chooses the stream of problems. Raises ValueError naming a bad option."""
    match cfg.name:
        case "addition":
            from megatron_entropic.tasks.addition import make_addition

            return make_addition(cfg.options, seed)
        case "decompose":
            from megatron_entropic.tasks.decompose import make_decompose

            return make_decompose(cfg.options, seed)
        case "math":
            from megatron_entropic.tasks.math import make_math

            return make_math(cfg.options, seed)
        case "reasoning_gym":
            from megatron_entropic.tasks.reasoning_gym import make_reasoning_gym

            return make_reasoning_gym(cfg.options, seed)


__all__ = ["Problem", "Task", "make_task"]
