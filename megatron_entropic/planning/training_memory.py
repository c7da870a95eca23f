"""The memory of a training rank, stage by stage: what is there all the time, and the largest of what comes on top."""

from collections.abc import Iterable
from dataclasses import dataclass

from megatron_entropic.config import Config, ModelConfig, RolloutConfig
from megatron_entropic.hf.architectures import Architecture
from megatron_entropic.planning.activations import Implementation, Unevenness
from megatron_entropic.planning.model_memory import (
    ModelMemory,
    ModelSize,
    element_bytes,
    largest_parameter,
    model_memory,
    stage_parameters,
)
from megatron_entropic.planning.passes import PassMemory

BUCKET_BYTES = 2**30
"""Of a weight update over NCCL; as in rollout/weight_sync/transports.py, which imports torch; a test holds them equal."""


@dataclass(frozen=True)
class StageMemory:
    """Bytes of one rank of a pipeline stage."""

    stage: int
    layers: int
    parameters: int
    """Elements."""
    model: ModelMemory
    in_flight: int
    kept: float
    """Activations of all micro-batches in flight."""
    head: float
    """The output head: what it keeps and computes with."""
    passes: float
    """The most that a forward and backward pass takes beside the model; holds `kept` and, where it is the most, `head`."""
    optimizer_working: float
    """Of an optimizer step: torch's AdamW makes two copies of a parameter's shard, fused ones none; gloo copies the gradients."""
    sync: float
    """Buffers in which rank 0 gathers and packs a weight update."""
    building: float
    """The model is built: parameters twice (as made, and in the buffer they move to) and the gradient buffer."""

    @property
    def peak(self) -> float:
        """The most bytes that tensors take at any time; the allocator's blocks and the CUDA context come on top."""
        steady = self.model.total + max(self.passes, self.optimizer_working, self.sync)
        return max(steady, self.building)


def training_memory(
    arch: Architecture,
    cfg: Config,
    *,
    implementation: Implementation,
    micro_batches: int,
    uneven: Unevenness = Unevenness(),
    gpu_bytes: int | None,
    stages: Iterable[int] | None = None,
) -> list[StageMemory]:
    """The memory of one rank of each of `stages` (default: all), in an update of `micro_batches` full micro-batches.

    `gpu_bytes`: memory of the GPU it runs on; None for a CPU.

    The most is on the first stage, which has most micro-batches in flight, or on the last, which has the output head.
    """
    size = ModelSize.of(arch)
    passes = PassMemory(arch, cfg, implementation, uneven, cfg.batch.max_tokens_per_micro_batch, micro_batches, gpu_bytes)
    return [_stage_memory(size, passes, stage) for stage in stages or range(cfg.parallel.pipeline)]


def _stage_memory(size: ModelSize, passes: PassMemory, stage: int) -> StageMemory:
    arch, cfg = passes.arch, passes.cfg
    parameters = stage_parameters(arch, size, cfg.model, cfg.parallel, stage)
    model = model_memory(parameters, cfg.model, cfg.parallel)
    flights = passes.in_flight(stage)
    optimizer = 2 * 4 * largest_parameter(arch, cfg.model, cfg.parallel, stage) if passes.implementation == "local" else 0
    if passes.gpu_bytes is None and cfg.parallel.data > 1:
        optimizer = max(optimizer, int(model.gradients))
    return StageMemory(
        stage=stage,
        layers=arch.num_layers // cfg.parallel.pipeline,
        parameters=parameters.total,
        model=model,
        in_flight=flights,
        kept=flights * passes.micro_batch(stage),
        head=passes.head_kept(stage) + passes.head_working(stage),
        passes=passes.peak(stage),
        optimizer_working=optimizer,
        sync=sync_bytes(arch, cfg.model, cfg.rollout) if stage == 0 else 0.0,
        building=2 * model.parameters + model.gradients,
    )


def sync_bytes(arch: Architecture, model: ModelConfig, rollout: RolloutConfig) -> float:
    """Bytes rank 0 holds of a weight update: a bucket of whole tensors, its packed copy, the next; one larger tensor is a bucket."""
    if rollout.engine != "vllm":
        return 0.0
    largest = element_bytes(model) * arch.hidden_size * max(arch.vocab_size, 2 * arch.ffn_hidden_size)
    return 3.0 * max(BUCKET_BYTES, largest)
