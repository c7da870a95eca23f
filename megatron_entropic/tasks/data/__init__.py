"""Prompts and answers from files: several sources mixed by weight, in any order that a seed gives, without state.

opening.py     files, folders and hub names -> stores        stores.py       rows of a file, mapped into memory
formats.py     what a row asks and answers                   source.py       a source: its rows as problems
mixing.py      draw -> source, epoch, place                  permutation.py  place -> row, without a list of all
selection.py   which rows are asked                          expression.py   filters that users write
judging.py     verifiers by their specs                      task.py         the task
"""

from collections.abc import Mapping
from typing import Any

from megatron_entropic.config.data import DATA_TASK, DataConfig
from megatron_entropic.tasks.data.task import DataTask, open_data


def make_data(options: Mapping[str, Any], seed: int | None, data: DataConfig) -> DataTask:
    """The task of `task.name=data`; `data` says everything, so it has no options. Raises ValueError as open_data."""
    if options:
        raise ValueError(f"task.options.{next(iter(options))}: task.name={DATA_TASK} has no options; its settings are data.*")
    return open_data(data.train, data, seed=seed)


__all__ = ["DataTask", "make_data", "open_data"]
