"""The policy in a training checkpoint: weights and optimizer through Megatron's dist_checkpointing, for any layout.

Every rank writes its own shards (checkpoint_writer.py); loading into another layout reads only what a rank needs.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException

from megatron_entropic.conversion.pickles import read_metadata
from megatron_entropic.errors import ReportedError
from megatron_entropic.policy.engine import Policy


class PolicyCheckpointError(ReportedError, RuntimeError):
    """A policy could not be written or read; the message names the folder."""


def load_policy(policy: Policy, folder: Path, updates: int) -> None:
    """Reads what a PolicyWriter wrote, under the same layout or another. Collective over the world.

    Args:
        updates: optimizer updates that the saved policy had had; puts the learning-rate schedule where it was.
    Raises:
        PolicyCheckpointError naming the folder, for files that are missing, damaged or of another model.
    """
    with quiet(), named_errors(folder, "read"):
        read_metadata(folder)  # refuses what is not a checkpoint's description before Megatron unpickles it
        for optimizer in _optimizers(policy):
            optimizer._init_optimizer_states_with_dummy_values()
        state = dist_checkpointing.load(sharded_state(policy, loading=True), str(folder))
        policy.model.load_state_dict(state["model"])
        policy.optimizer.load_state_dict(state["optimizer"])
    for optimizer in _optimizers(policy):
        for parameter_state in optimizer.optimizer.state.values():
            if "step" in parameter_state:  # torch's AdamW counts per parameter, and dist_checkpointing does not carry that
                parameter_state["step"] = torch.as_tensor(float(updates), dtype=torch.float32)
    policy.updates = updates
    policy.scheduler.step(increment=updates - policy.scheduler.num_steps)


def sharded_state(policy: Policy, *, loading: bool) -> dict[str, Any]:
    """What Megatron saves and loads: the policy's weights and optimizer, with the place of every shard."""
    # Fully reshardable: the optimizer state is laid out like the weights, so that tensor, pipeline and data ranks may change.
    metadata = {"distrib_optim_sharding_type": "fully_reshardable", "dp_cp_group": policy.parallel.dp_group}
    model = policy.model.sharded_state_dict(metadata=metadata)
    return {"model": model, "optimizer": policy.optimizer.sharded_state_dict(model, is_loading=loading, metadata=metadata)}


def _optimizers(policy: Policy) -> list[Any]:
    return list(getattr(policy.optimizer, "chained_optimizers", [policy.optimizer]))


@contextmanager
def named_errors(folder: Path, what: str) -> Iterator[None]:
    """Raises PolicyCheckpointError, naming the folder, for what goes wrong with a checkpoint in the block."""
    try:
        yield
    except (CheckpointingException, OSError, RuntimeError, KeyError, ValueError) as error:
        raise PolicyCheckpointError(f"{folder}: the policy cannot be {what}: {type(error).__name__}: {error}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Megatron warns of torch interfaces that it uses itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
