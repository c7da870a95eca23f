"""The run's problems, looked at before it starts: how many, whether they fit the context, whether each known answer can be reached."""

import logging
from collections.abc import Sequence

from megatron_entropic.config import Config
from megatron_entropic.config.loading import ConfigError
from megatron_entropic.rollout.prompts import PromptStream, make_stream
from megatron_entropic.start_checks.data_task import check_data_task
from megatron_entropic.start_checks.golds import unreachable
from megatron_entropic.tasks import make_task
from megatron_entropic.tasks.data import DataTask
from megatron_entropic.tasks.row_task import RowTask
from megatron_entropic.tasks.rows import DataRow

logger = logging.getLogger(__name__)

_LOOKED_AT = 64
"""Problems of a task that makes them by rule: the first ones of the run's stream."""
_SHOWN = 5


def check_data(cfg: Config, seed: int | None = None) -> list[str]:
    """Remarks on the run's data, a line each; `seed` is trainer.seed by default.

    Raises ValueError naming the file and lines, or the problems, that cannot be used.
    """
    seed = cfg.trainer.seed if seed is None else seed
    task = make_task(cfg.task, seed, cfg.data)
    stream = make_stream(cfg, task, prompts_per_step=1)
    if isinstance(task, DataTask):
        return check_data_task(cfg, task, stream, seed)
    if not isinstance(task, RowTask):
        _check_sample(stream)
        return []
    remarks = [str(task), *_check_lengths(stream, task)]
    if bad := unreachable(task, cfg.task, seed, cfg.reward):
        raise ConfigError(f"{task.file.path}: {_listed([f'line {row.number}: {reason}' for row, reason in bad])}")
    return remarks


def _check_lengths(stream: PromptStream, task: RowTask) -> list[str]:
    """A remark on what becomes of prompts that are too long. Raises ConfigError where they are refused."""
    if stream.overlong == "drop":
        return [_counted(stream.dropped, stream.room, "are left out")] if stream.dropped else []
    long = [row for row in task.rows if not stream.encoder.fits(task.problem_of(row).prompt, stream.room)]
    if long and stream.overlong == "refuse":
        raise ConfigError(
            f"{task.file.path}: {_counted(long, stream.room, 'are too long')}; lower rollout.max_new_tokens, raise "
            "batch.max_tokens_per_micro_batch, or say task.overlong_prompts=drop or truncate"
        )
    return [_counted(long, stream.room, "are cut in their middle")] if long else []


def _check_sample(stream: PromptStream) -> None:
    """Raises ConfigError when one of the first problems is too long and would be refused later on."""
    for index in range(_LOOKED_AT):
        text = stream.task.problem(index).prompt
        if not text.strip():
            raise ConfigError(f"problem {index} of the task has an empty prompt")
        if stream.overlong == "refuse" and not stream.encoder.fits(text, stream.room):
            raise ConfigError(
                f"problem {index} of the task has {stream.encoder.length(text)} tokens, {stream.room} are left for a prompt; lower "
                "rollout.max_new_tokens, choose shorter problems by task.options, or say task.overlong_prompts=drop or truncate"
            )


def _counted(rows: Sequence[DataRow], room: int, what: str) -> str:
    lines = ", ".join(str(row.number) for row in rows[:_SHOWN])
    more = ", ..." if len(rows) > _SHOWN else ""
    return f"of the prompts, {len(rows)} with more than {room} tokens {what} (line {lines}{more})"


def _listed(problems: Sequence[str]) -> str:
    more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return "; ".join(problems[:_SHOWN]) + more
