"""The policy in a training checkpoint: weights and optimizer through Megatron's dist_checkpointing, for any layout.

Every rank writes its own shards, so nobody holds the model twice; loading into another layout reads only what a rank needs.
"""

import queue
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync

from megatron_entropic.errors import ReportedError
from megatron_entropic.policy.engine import Policy


class PolicyCheckpointError(ReportedError, RuntimeError):
    """A policy could not be written or read; the message names the folder."""


def save_policy(policy: Policy, folder: Path) -> None:
    """Writes weights and optimizer state into the empty folder `folder`. Collective over the world.

    Raises PolicyCheckpointError naming the folder (disk full, read-only, ...).
    """
    with _quiet(), _named(folder, "written"), _written_by_this_process():
        dist_checkpointing.save(_sharded_state(policy, loading=False), str(folder))


def load_policy(policy: Policy, folder: Path, updates: int) -> None:
    """Reads what `save_policy` wrote, under the same layout or another. Collective over the world.

    Args:
        updates: optimizer updates that the saved policy had had; puts the learning-rate schedule where it was.
    Raises:
        PolicyCheckpointError naming the folder, for files that are missing, damaged or of another model.
    """
    with _quiet(), _named(folder, "read"):
        for optimizer in _optimizers(policy):
            optimizer._init_optimizer_states_with_dummy_values()
        state = dist_checkpointing.load(_sharded_state(policy, loading=True), str(folder))
        policy.model.load_state_dict(state["model"])
        policy.optimizer.load_state_dict(state["optimizer"])
    for optimizer in _optimizers(policy):
        for parameter_state in optimizer.optimizer.state.values():
            if "step" in parameter_state:  # torch's AdamW counts per parameter, and dist_checkpointing does not carry that
                parameter_state["step"] = torch.as_tensor(float(updates), dtype=torch.float32)
    policy.updates = updates
    policy.scheduler.step(increment=updates - policy.scheduler.num_steps)


def _sharded_state(policy: Policy, *, loading: bool) -> dict[str, Any]:
    # Fully reshardable: the optimizer state is laid out like the weights, so that tensor, pipeline and data ranks may change.
    metadata = {"distrib_optim_sharding_type": "fully_reshardable", "dp_cp_group": policy.parallel.dp_group}
    model = policy.model.sharded_state_dict(metadata=metadata)
    return {"model": model, "optimizer": policy.optimizer.sharded_state_dict(model, is_loading=loading, metadata=metadata)}


def _optimizers(policy: Policy) -> list[Any]:
    return list(getattr(policy.optimizer, "chained_optimizers", [policy.optimizer]))


@contextmanager
def _named(folder: Path, what: str) -> Iterator[None]:
    try:
        yield
    except (CheckpointingException, OSError, RuntimeError, KeyError, ValueError) as error:
        raise PolicyCheckpointError(f"{folder}: the policy cannot be {what}: {type(error).__name__}: {error}") from error


@contextmanager
def _written_by_this_process() -> Iterator[None]:
    """Has Megatron's writer write here instead of in forked processes that report through a spawned manager process.

    Those take seconds to start, cannot start below a daemonic process, and a killed one is waited for for ever.
    """
    original, original_queue = FileSystemWriterAsync.write_preloaded_data_multiproc, filesystem_async._results_queue
    FileSystemWriterAsync.write_preloaded_data_multiproc = staticmethod(_write_buckets)
    filesystem_async._results_queue = queue.Queue()
    try:
        yield
    finally:
        FileSystemWriterAsync.write_preloaded_data_multiproc = staticmethod(original)
        filesystem_async._results_queue = original_queue


def _write_buckets(transforms: list[Any], use_msc: bool, rank: int, buckets: list[Any], results: "queue.Queue[Any]") -> None:
    """One file after the other; puts {bucket: write results}, or the first exception, into `results` as Megatron's own does."""
    written: dict[int, Any] = {}
    for number, bucket in enumerate(buckets):
        outcome: queue.Queue[Any] = queue.Queue()
        pending: queue.Queue[int] = queue.Queue()
        pending.put(number)
        FileSystemWriterAsync.write_preloaded_data(transforms, number, bucket, outcome, pending, use_fsync=True, use_msc=use_msc)
        _, result = outcome.get()
        if isinstance(result, Exception):
            results.put(result)
            return
        written[number] = result
    results.put(written)


@contextmanager
def _quiet() -> Iterator[None]:
    """Megatron warns of torch interfaces that it uses itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
