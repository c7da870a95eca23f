"""Reading a distributed checkpoint with ranks that read at different speeds: none waits for another's disk inside a collective."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.distributed.checkpoint.filesystem import FileSystemReader

from megatron_entropic.distributed.rank_zero import Ranked, meet


@contextmanager
def patient_reading(parallel: Ranked) -> Iterator[None]:
    """Ranks that load a distributed checkpoint in the block meet, for as long as it takes, between reading and what follows.

    torch's loader gathers every rank's outcome in a collective right after reading.
    """
    original = FileSystemReader.read_data

    def read_then_meet(self: FileSystemReader, plan: Any, planner: Any) -> Any:
        try:
            return original(self, plan, planner)
        finally:  # also after an error, which the collective then tells the others
            meet(parallel, "every rank to read its shard of the checkpoint")

    FileSystemReader.read_data = read_then_meet  # type: ignore[method-assign]
    try:
        yield
    finally:
        FileSystemReader.read_data = original  # type: ignore[method-assign]
