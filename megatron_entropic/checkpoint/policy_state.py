"""The policy in a training checkpoint: weights and optimizer through Megatron's dist_checkpointing, for any layout.

Every rank writes its own shards (policy_writer.py); loading into another layout reads only what a rank needs.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException
from torch.distributed.checkpoint.api import CheckpointException

from megatron_entropic.checkpoint.optimizer_state import make_state, set_update_count, sharded_optimizer_state
from megatron_entropic.conversion.pickles import read_metadata
from megatron_entropic.distributed.patient_reading import patient_reading
from megatron_entropic.errors import ReportedError
from megatron_entropic.policy.engine import Policy
from megatron_entropic.policy.response import Response
from megatron_entropic.policy.scaling_state import has_scaling_state, load_state, without_scaling_state


class PolicyCheckpointError(ReportedError, RuntimeError):
    """A policy could not be written or read; the message names the folder."""


def load_policy(policy: Policy, folder: Path, updates: int, response: dict[str, Any] | None = None) -> None:
    """Reads what a PolicyWriter wrote, under the same layout or another. Collective over the world.

    Args:
        updates: optimizer updates that the saved policy had had; puts the learning-rate schedule where it was.
        response: `Response.state()` of the latest of them; None: not known.
    Raises:
        PolicyCheckpointError naming the folder, for files that are missing, damaged or of another model.
    """
    with quiet(), named_errors(folder, "read"), patient_reading(policy.parallel):
        read_metadata(folder)  # refuses what is not a checkpoint's description before Megatron unpickles it
        make_state(policy.optimizer)
        state = dist_checkpointing.load(sharded_state(policy), str(folder))
        load_state(policy.model, state["model"], scaling=has_scaling_state(policy.model.config))
    set_update_count(policy.optimizer, updates)
    policy.updates = updates
    policy.response = Response.of_state(response)
    policy.scheduler.step(increment=updates - policy.scheduler.num_steps)


def sharded_state(policy: Policy) -> dict[str, Any]:
    """Sharded state dict of the policy: weights and optimizer state, with the offsets of every shard. They share its memory.

    Where FP8 scales by earlier steps it has the layers' scaling state too. Else it is the same for all implementations of the layers.
    """
    model = policy.model.sharded_state_dict(metadata={"dp_cp_group": policy.parallel.dp_group})
    if not has_scaling_state(policy.model.config):
        model = without_scaling_state(model)
    return {"model": model, "optimizer": sharded_optimizer_state(policy.optimizer, model)}


@contextmanager
def named_errors(folder: Path, what: str) -> Iterator[None]:
    """Raises PolicyCheckpointError, naming the folder, for what goes wrong with a checkpoint in the block."""
    try:
        yield
    except CheckpointException as error:  # torch's, of all ranks together, and no Exception
        rank, (cause, _) = min(error.failures.items())
        raise PolicyCheckpointError(f"{folder}: the policy cannot be {what}: rank {rank}: {type(cause).__name__}: {cause}") from error
    except (CheckpointingException, OSError, RuntimeError, KeyError, ValueError) as error:
        raise PolicyCheckpointError(f"{folder}: the policy cannot be {what}: {type(error).__name__}: {error}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Megatron warns of torch interfaces that it uses itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
