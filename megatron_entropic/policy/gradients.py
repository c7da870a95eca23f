"""Gradients over the data ranks: fp32 buffers, reduced to the shards of the distributed optimizer."""

from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads

from megatron_entropic import platform
from megatron_entropic.config import ParallelConfig
from megatron_entropic.policy.model import PolicyModel


def overlaps_gradients(layout: ParallelConfig) -> bool:
    """Whether gradients are reduced, bucket by bucket, while the backward pass goes on."""
    if layout.gradient_overlap == "auto":
        return platform.accelerated() and layout.data * layout.context > 1
    return layout.gradient_overlap


def shared_gradients(model: PolicyModel, layout: ParallelConfig, bucket_size: int | None = None) -> DistributedDataParallel:
    """`model` with a gradient buffer, which Megatron's schedules reduce after the last micro-batch.

    Args:
        bucket_size: elements that are reduced at one time, where gradients overlap; None: Megatron-Core's choice.

    Updated parameters are gathered at once, not beside the next forward pass: weight synchronisation, checkpoints and the output head
    read them without a module's forward, by which Megatron-Core waits for them.
    """
    overlap = overlaps_gradients(layout)
    settings = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        use_distributed_optimizer=True,
        overlap_grad_reduce=overlap,
        overlap_param_gather=False,
        bucket_size=bucket_size,
    )
    config = model.config
    ddp = DistributedDataParallel(config, settings, model)
    config.finalize_model_grads_func = finalize_model_grads
    if overlap:
        config.no_sync_func = ddp.no_sync  # only the last micro-batch's gradients are sent
    return ddp
