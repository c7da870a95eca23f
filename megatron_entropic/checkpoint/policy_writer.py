"""Writing a policy's checkpoint while it is trained on: copied to host memory at once, written by a thread of this process.

Megatron plans who writes what (dist_checkpointing's torch_dist format, which any layout can load). Its writers would be forked
or spawned processes: those take seconds to start, cannot start below a daemonic process, and a killed one is waited for for
ever. A thread does as well, because writing and hashing leave the interpreter to the others.
"""

import inspect
import io
import queue
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync
from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy

from megatron_entropic import platform
from megatron_entropic.checkpoint.policy_state import named_errors, quiet, sharded_state
from megatron_entropic.checkpoint_files.manifest import Fingerprint, fingerprint
from megatron_entropic.policy.engine import Policy

COMMON_FILE = "common.pt"
_FORMAT, _VERSION = "torch_dist", 1


@dataclass
class Written:
    """Result of one rank's write: fingerprints by file name, Megatron's metadata of the shards, seconds; or the error."""

    rank: int
    files: dict[str, Fingerprint] = field(default_factory=dict)
    records: list[Any] = field(default_factory=list)
    seconds: float = 0.0
    error: str | None = None


class PolicyWriter:
    """One checkpoint of the policy on its way into `folder`, which exists and is empty. To be made on every rank together.

    When the constructor returns, weights and optimizer state have been copied and training may continue; nothing is written yet.
    `start` writes this rank's shard; once every rank's `done` is true, rank 0 calls `finish` with what all of them wrote.
    Collectives: those of Megatron's planning, in the constructor. Raises PolicyCheckpointError naming the folder.
    """

    def __init__(self, policy: Policy, folder: Path) -> None:
        self.folder = folder
        self._written = Written(policy.parallel.rank)
        with quiet(), named_errors(folder, "written"), _no_manager_process():
            sharded, common = save_preprocess(sharded_state(policy))
            self._planned, self._metadata = _PlanningStrategy(_FORMAT, _VERSION).async_save(sharded, folder)
            self._buckets = self._planned.write_buckets
            copy_to_host(self._buckets)
        self._common = io.BytesIO()
        if policy.parallel.rank == 0:  # what is the same on all ranks: groups of parameters and their settings
            torch.save(common, self._common)
        # A daemon: a run that fails meanwhile does not wait for a checkpoint that cannot be finished any more.
        self._thread = threading.Thread(target=self._write, name="checkpoint", daemon=True)

    def start(self) -> None:
        """Begins to write, in a thread."""
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether this rank has written its shard, or failed to."""
        return not self._thread.is_alive()

    @property
    def written(self) -> Written:
        """The result of this rank's write, once it is done."""
        assert self.done
        return self._written

    def finish(self, ranks: list[Written]) -> dict[str, Fingerprint]:
        """Makes a checkpoint of what all ranks wrote; returns the files by name. Rank 0 only. Raises OSError."""
        self._planned.finish(self._metadata, [written.records for written in ranks])
        save_config(CheckpointingConfig(_FORMAT, _VERSION), str(self.folder))
        return {name: fingerprint for written in ranks for name, fingerprint in written.files.items()}

    def _write(self) -> None:
        start = time.monotonic()
        path = self.folder
        try:
            if self._written.rank == 0:
                path = self.folder / COMMON_FILE
                path.write_bytes(self._common.getbuffer())
                self._written.files[path.name] = fingerprint(path)
            for number, bucket in enumerate(self._buckets):
                path = Path(bucket[0])
                self._written.records += _write_bucket(self._planned, number, bucket)
                self._written.files[path.name] = fingerprint(path)
        except Exception as error:  # noqa: BLE001 - reported to all ranks, which end the run with it
            self._written.error = _explain(path, error)
        finally:
            self._buckets.clear()  # the copies
        self._written.seconds = time.monotonic() - start


class _PlanningStrategy(TorchDistSaveShardedStrategy):  # type: ignore[misc]
    """Megatron's strategy, stopped after its planning: `async_save` returns (the storage writer, rank 0's metadata)."""

    def _get_save_and_finalize_callbacks(self, writer: FileSystemWriterAsync, planned: tuple[Any, Any, Any]) -> tuple[Any, Any]:
        return writer, planned[1]


def copy_to_host(buckets: list[Any]) -> None:
    """Replaces every tensor by a copy in host memory. On a CPU Megatron hands out the live ones, which the next update changes.

    From a GPU all are copied at one time, into pinned memory: several times as fast as one by one into pages that may move. The
    pages stay with the process, for the next checkpoint.
    """
    pinned = platform.accelerated()
    for _, _, (_, tensors) in buckets:
        for index, (item, tensor) in enumerate(tensors):
            copy = torch.empty_like(tensor, device="cpu", memory_format=torch.contiguous_format, pin_memory=pinned)
            tensors[index] = (item, copy.copy_(tensor.detach(), non_blocking=pinned))
    if pinned:
        torch.cuda.synchronize()


def _write_bucket(planned: FileSystemWriterAsync, number: int, bucket: Any) -> list[Any]:
    """Writes and syncs one file; returns the records of its items. Raises what went wrong."""
    outcome: queue.Queue[Any] = queue.Queue()
    pending: queue.Queue[int] = queue.Queue()
    pending.put(number)
    transforms = [planned.transforms] if hasattr(planned, "transforms") else []
    # Unwrapped: Megatron's decorator switches the garbage collector of the whole process off meanwhile, for a forked child's sake.
    write = inspect.unwrap(FileSystemWriterAsync.write_preloaded_data)
    write(transforms, number, bucket, outcome, pending, use_fsync=True)
    _, records = outcome.get()
    if isinstance(records, Exception):
        raise records
    return list(records)


def _explain(path: Path, error: Exception) -> str:
    """One line that names the file, the reason and, because some errors of torch hide it, the space left."""
    try:
        free = f"; {shutil.disk_usage(path.parent).free / 1e9:.3g} GB free there"
    except OSError:
        free = ""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else f"{type(error).__name__}: {error}".splitlines()[0]
    return f"{path}: {reason}{free}"


@contextmanager
def _no_manager_process() -> Iterator[None]:
    """Megatron's writer starts a process for a queue that is not used here, unless there is one already."""
    original = filesystem_async._results_queue
    filesystem_async._results_queue = queue.Queue()
    try:
        yield
    finally:
        filesystem_async._results_queue = original
