"""Sets of problems that a policy is scored on: opened, every problem looked at, ready to be sampled."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from megatron_entropic.config import Config, DataConfig, TaskConfig
from megatron_entropic.config.data import DATA_TASK
from megatron_entropic.config.loading import ConfigError
from megatron_entropic.config.validation import ValidationSet
from megatron_entropic.rollout.prompts import PromptStream, make_stream
from megatron_entropic.rollout.types import Prompt, SamplingParameters
from megatron_entropic.tasks import make_task
from megatron_entropic.tasks.data import DataTask, open_data
from megatron_entropic.tasks.row_task import RowTask
from megatron_entropic.tasks.task import Problem, Task

PROBLEMS = 64
"""Of a task that makes them by rule, where the set has no limit."""
_SHOWN = 3


@dataclass(frozen=True)
class OpenSet:
    """A set's prompts in order, their problems by prompt index, and the task that judges answers: what make_task(task_cfg, seed) gave.

    `remark` says what was left out; empty when nothing was.
    """

    settings: ValidationSet
    task: Task
    task_cfg: TaskConfig
    seed: int
    prompts: list[Prompt]
    problems: Mapping[int, Problem]
    sampling: SamplingParameters
    remark: str

    @property
    def name(self) -> str:
        return self.settings.name


def open_set(cfg: Config, settings: ValidationSet) -> OpenSet:
    """The set of a run with these settings. Raises ConfigError naming the set, and what of it cannot be read or asked."""
    try:
        return _opened(cfg, settings)
    except (ValueError, OSError) as error:
        raise ConfigError(f"validation.sets, set {settings.name}: {error}") from error


def _opened(cfg: Config, settings: ValidationSet) -> OpenSet:
    longest = settings.max_new_tokens or cfg.rollout.max_new_tokens
    seed = set_seed(settings.name)
    task_cfg, data, task = _task_of(cfg, settings, seed % 2**31)
    stream = _stream(cfg, task_cfg, data, task, longest)
    bad: list[str] = []
    prompts: list[Prompt] = []
    problems: dict[int, Problem] = {}
    for index in _indices(task, settings, bad):
        [prompt], of_prompt = stream.step(index)
        if len(prompt.token_ids) > stream.room:
            raise ValueError(
                f"problem {index} has {len(prompt.token_ids)} tokens, {stream.room} are left beside max_new_tokens={longest}: lower "
                "it, raise batch.max_tokens_per_micro_batch, or leave the problem out by filter"
            )
        prompts.append(prompt)
        problems |= of_prompt
    if not prompts:
        raise ValueError(f"none of its problems can be used: {_listed(bad)}")
    temperature = cfg.rollout.temperature if settings.temperature is None else settings.temperature
    sampling = SamplingParameters(temperature, settings.top_p, longest, seed)
    remark = f"{len(bad)} of {len(bad) + len(prompts)} problems are left out: {_listed(bad)}" if bad else ""
    return OpenSet(settings, task, task_cfg, seed % 2**31, prompts, problems, sampling, remark)


def set_seed(name: str) -> int:
    """Seed of 63 bits of a set's samples, and of its problems where a task makes them: the same in every run, and no run's own."""
    return int.from_bytes(hashlib.blake2b(f"validation/{name}".encode(), digest_size=8).digest()) >> 1


def _task_of(cfg: Config, settings: ValidationSet, seed: int) -> tuple[TaskConfig, DataConfig, Task]:
    """The settings of the task that makes the set's problems, what it reads, and itself."""
    base = replace(cfg.task, overlong_prompts="refuse")
    if settings.path:
        if settings.part == "held_out" and not cfg.data.held_out:
            raise ValueError("part=held_out needs data.held_out, such as 0.1")
        data = DataConfig(held_out=cfg.data.held_out, part=settings.part)
        return replace(base, name=DATA_TASK, options={}), data, open_data([settings.source], data, seed=None, name="source")
    if settings.task:
        task_cfg = replace(base, name=settings.task, options=settings.options)
        return task_cfg, DataConfig(), make_task(task_cfg, seed)
    return _own_task(cfg, seed)


def _own_task(cfg: Config, seed: int) -> tuple[TaskConfig, DataConfig, Task]:
    """The run's own task, on problems that it is not trained on."""
    own = cfg.task
    if own.name == DATA_TASK:
        if not cfg.data.held_out:
            raise ValueError("names neither path nor task, and the run's own data holds nothing out; set data.held_out, such as 0.05")
        held_out = tuple(replace(source, part="held_out") for source in cfg.data.train)
        data = replace(cfg.data, train=held_out, part="held_out", curriculum=False)
        return own, data, open_data(data.train, data, seed=None)
    if "test_fraction" in own.options and "split" not in own.options:
        own = replace(own, options={**own.options, "split": "test"})
    task = make_task(own, seed)
    if isinstance(task, RowTask) and own.options.get("split") != "test":
        raise ValueError("names neither path nor task, and the run is trained on all rows of its file; set task.options.test_fraction")
    return own, DataConfig(), task


def _indices(task: Task, settings: ValidationSet, bad: list[str]) -> Iterator[int]:
    """Indices of the problems that are asked; what is wrong with others goes to `bad`, or is a ValueError where it is refused."""
    whole = len(task) if isinstance(task, DataTask) else len(task.rows) if isinstance(task, RowTask) else settings.limit or PROBLEMS
    found = 0
    for index in range(whole):
        if settings.limit and found == settings.limit:
            return
        try:
            task.problem(index)
        except ValueError as problem:
            if settings.bad_rows == "refuse" or not isinstance(task, DataTask):
                raise
            bad.append(str(problem))
            continue
        found += 1
        yield index


def _stream(cfg: Config, task_cfg: TaskConfig, data: DataConfig, task: Task, longest: int) -> PromptStream:
    """The prompts of the task's problems, one a step. They have a training prompt's room beside `longest` tokens of answer.

    Raises ValueError when there is none.
    """
    room = max(1, cfg.batch.max_tokens_per_micro_batch - cfg.rollout.max_new_tokens)
    asking = replace(
        cfg,
        task=task_cfg,
        data=data,
        batch=replace(cfg.batch, max_tokens_per_micro_batch=max(8, room + longest)),
        rollout=replace(cfg.rollout, max_new_tokens=longest),
    )
    try:
        return make_stream(asking, task, prompts_per_step=1)
    except ValueError as error:
        raise ValueError(str(error).replace("rollout.max_new_tokens", "max_new_tokens")) from error


def _listed(bad: list[str]) -> str:
    return "; ".join(bad[:_SHOWN]) + (f"; and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else "")
