"""The weights a policy starts from: a Hugging Face directory's, or those of a distributed checkpoint."""

import warnings
from pathlib import Path

import torch
from megatron.core import dist_checkpointing

from megatron_entropic.checkpoint_files.kind import holds_distributed_weights
from megatron_entropic.conversion.view import DistributedView
from megatron_entropic.distributed.parallel import Parallel
from megatron_entropic.distributed.patient_reading import patient_reading
from megatron_entropic.hf.headers import CheckpointError
from megatron_entropic.hf.tables import model_rows
from megatron_entropic.hf.values import is_finite
from megatron_entropic.policy.model import PolicyModel
from megatron_entropic.policy.scaling_state import load_state, without_scaling_state
from megatron_entropic.policy.weights import load_hf_weights, named_parameters


def load_start_weights(model: PolicyModel, folder: Path, parallel: Parallel) -> None:
    """Fills this rank's parameters from `folder`: safetensors, or a distributed checkpoint's policy/.

    Values are converted to the parameters' dtype; padding rows of the vocabulary become zeros. Collective over the world for a
    distributed checkpoint. Raises CheckpointError naming the file, and the tensor with values that are not finite.
    """
    if holds_distributed_weights(folder):
        _load_distributed(model, folder, parallel)
        rows = model_rows(model.arch)
        for name, parameter in named_parameters(model, parallel).items():
            if not is_finite(parameter):
                raise CheckpointError(f"{folder}: values of {name} ({', '.join(rows[name].hf)}) are NaN or infinite: a broken model")
    else:
        load_hf_weights(model, folder, parallel)


def clear_weights(model: PolicyModel) -> None:
    """Makes all parameters 0: another layout pads the vocabulary to other lengths, and what a checkpoint lacks stays."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()


def _load_distributed(model: PolicyModel, folder: Path, parallel: Parallel) -> None:
    # What is wrong with the checkpoint is said by us, all at once and before Megatron unpickles its description.
    DistributedView(folder, model.arch).close()
    clear_weights(model)
    wanted = without_scaling_state(model.sharded_state_dict())
    with warnings.catch_warnings(), patient_reading(parallel):
        warnings.simplefilter("ignore")  # Megatron warns of torch interfaces that it uses itself
        try:
            state = dist_checkpointing.load({"model": wanted}, str(folder))
        except (RuntimeError, OSError, KeyError, ValueError) as error:
            raise CheckpointError(f"{folder}: the weights cannot be read: {type(error).__name__}: {error}") from error
    try:
        load_state(model, state["model"], scaling=False)
    except KeyError as error:
        raise CheckpointError(f"{folder}: other weights than the model's: {error}") from error
