"""Megatron-Core's distributed AdamW and its learning-rate schedule, from our settings."""

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer, get_megatron_optimizer
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from megatron_entropic.config import OptimizerConfig


def make_optimizer(settings: OptimizerConfig, model: DistributedDataParallel, *, dtype: str) -> MegatronOptimizer:
    """AdamW with fp32 masters, sharded over the data-parallel ranks, clipping the global gradient norm."""
    bf16 = dtype == "bfloat16"
    return get_megatron_optimizer(
        MegatronOptimizerConfig(
            optimizer="adam",
            lr=settings.lr,
            min_lr=settings.min_lr,
            weight_decay=settings.weight_decay,
            adam_beta1=settings.beta1,
            adam_beta2=settings.beta2,
            adam_eps=settings.eps,
            clip_grad=settings.clip_grad,
            bf16=bf16,
            params_dtype=torch.bfloat16 if bf16 else torch.float32,
            use_distributed_optimizer=True,
        ),
        [model],
    )


def make_scheduler(settings: OptimizerConfig, optimizer: MegatronOptimizer, *, updates: int) -> OptimizerParamScheduler:
    """Linear warm-up over `warmup_updates`, then the decay of `schedule` to `min_lr` at the last of the run's `updates`."""
    # Update k of the warm-up uses lr (k + 1) / (warmup + 1): the first is not wasted at a learning rate of 0.
    return OptimizerParamScheduler(
        optimizer,
        init_lr=settings.lr / (settings.warmup_updates + 1) if settings.warmup_updates else 0.0,
        max_lr=settings.lr,
        min_lr=min(settings.min_lr, settings.lr),
        lr_warmup_steps=settings.warmup_updates,
        lr_decay_steps=max(updates, settings.warmup_updates + 1),
        lr_decay_style=settings.schedule,
        start_wd=settings.weight_decay,
        end_wd=settings.weight_decay,
        wd_incr_steps=0,
        wd_incr_style="constant",
    )
