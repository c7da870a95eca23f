"""Rows of the data task that are too short or too long, in tokens of the policy's tokenizer, left out before a run starts."""

from collections.abc import Sequence

import numpy as np

from megatron_entropic.config import DataConfig
from megatron_entropic.rollout.prompt_encoder import PromptEncoder
from megatron_entropic.tasks.data import DataTask
from megatron_entropic.tasks.data.source import SourceRows
from megatron_entropic.tasks.task import Problem


def select_by_tokens(task: DataTask, encoder: PromptEncoder, data: DataConfig, *, room: int | None) -> None:
    """Leaves out what data.min_prompt_tokens and max_prompt_tokens say, and what has more than `room` tokens.

    Reads every row, and only where one of these is set. Raises ValueError when nothing is left of a source, and for chats and
    arguments of a template where there is none.
    """
    for rows in task.sources:
        check_template(rows, encoder)
    limits = [limit for limit in (data.max_prompt_tokens or None, room) if limit is not None]
    if not (limits or data.min_prompt_tokens):
        return
    for rows in task.sources:
        rows.keep(
            np.array([_fits(rows.question(index), encoder, data.min_prompt_tokens, limits) for index in rows.indices()], np.bool_)
        )
    task.renumber()


def check_template(rows: SourceRows, encoder: PromptEncoder) -> None:
    """Raises ValueError naming the setting of a source that needs a chat template which is not there, or does not read it."""
    encoder.check_template_options(rows.source.template_options, f"{rows.name}.template_options")
    if rows.source.system and not encoder.chat_template:
        raise ValueError(f"{rows.name}.system: a system prompt is part of a chat; it needs task.chat_template=true")


def _fits(problem: Problem, encoder: PromptEncoder, least: int, limits: Sequence[int]) -> bool:
    return all(encoder.fits(problem, limit) for limit in limits) and (not least or encoder.length(problem) >= least)
