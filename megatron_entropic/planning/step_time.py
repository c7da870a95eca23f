"""Roofline of a step: arithmetic at a fraction of the peak, bytes at a fraction of the bandwidth, and the pipeline's bubble."""

from dataclasses import dataclass

from megatron_entropic.config import Config, ModelConfig, ParallelConfig
from megatron_entropic.hf.architectures import Architecture
from megatron_entropic.planning.cluster import Assumptions, Cluster
from megatron_entropic.planning.communication import (
    Traffic,
    expert_tokens_share,
    expert_traffic_per_token,
    layer_traffic_per_token,
    step_traffic,
    sync_traffic,
    update_traffic,
)
from megatron_entropic.planning.model_memory import ModelSize, element_bytes, stage_parameters
from megatron_entropic.planning.serving import ServerMemory, generation_seconds
from megatron_entropic.planning.workload import Workload, head_flops, layer_flops, mlp_flops


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step by what takes them."""

    rollout: float
    update: float
    sync: float
    overlapped: bool
    """rollout.max_staleness > 0: the next batch is generated during the update."""
    bubble: float
    """Fraction of the passes' time in which a stage waits for another."""
    traffic: tuple[Traffic, ...]

    @property
    def total(self) -> float:
        both = max(self.rollout, self.update) if self.overlapped else self.rollout + self.update
        return both + self.sync


def step_time(
    arch: Architecture, cfg: Config, cluster: Cluster, assumed: Assumptions, work: Workload, server: ServerMemory | None
) -> StepTime:
    """The estimate for a layout; without servers nothing is known of the rollout's time, and it is 0."""
    size, model, layout = ModelSize.of(arch), cfg.model, cfg.parallel
    stages = [stage_parameters(arch, size, model, layout, stage) for stage in range(layout.pipeline)]
    largest = max(stages, key=lambda stage: stage.total)
    trained = work.updates * _passes(arch, model, layout, cluster, assumed, work, backward=True)
    measured = work.forward_passes * work.updates * _passes(arch, model, layout, cluster, assumed, work, backward=False)
    exchanged = work.updates * sum(t.seconds(assumed.link_efficiency) for t in update_traffic(model, layout, cluster, largest))
    syncs = sync_traffic(size, model, layout, cfg.rollout, cluster)
    return StepTime(
        rollout=generation_seconds(arch, cfg, cluster, assumed, work, server) if server else 0.0,
        update=trained + measured + exchanged,
        sync=sum(traffic.seconds(assumed.link_efficiency) for traffic in syncs),
        overlapped=cfg.rollout.max_staleness > 0,
        bubble=(layout.pipeline - 1) / (work.micro_batches + layout.pipeline - 1),
        traffic=(*step_traffic(arch, model, layout, cluster, work, stages), *syncs),
    )


def _passes(
    arch: Architecture,
    model: ModelConfig,
    layout: ParallelConfig,
    cluster: Cluster,
    assumed: Assumptions,
    work: Workload,
    *,
    backward: bool,
) -> float:
    """Seconds of one update's passes: (micro-batches + stages - 1) times the slowest stage's time for one micro-batch."""
    size = ModelSize.of(arch)
    tokens = work.tokens / work.updates / layout.data / work.micro_batches
    responses = tokens * work.response_tokens / work.sample_tokens
    layers = arch.num_layers // layout.pipeline
    forward = layer_flops(arch, size, work.sample_tokens)
    if layout.expert > 1:  # the busiest rank of each exchange is waited for
        forward += (assumed.expert_imbalance - 1) * mlp_flops(arch)
    again = {"none": 0.0, "selective": mlp_flops(arch), "full": forward}[model.recompute]
    per_layer = 3 * forward + again if backward else forward
    head = responses * head_flops(arch) * (4 if backward else 1)
    flops = (tokens * layers * per_layer + head) / layout.tensor
    seconds = flops / (cluster.gpu.tflops * 1e12 * assumed.mfu)
    tensor_bytes = tokens * layers * layer_traffic_per_token(arch, model, layout, backward=backward)
    tensor = Traffic("", tensor_bytes, cluster.link_gb_s(layout.tensor))
    expert_bytes = tokens * layers * expert_traffic_per_token(arch, model, layout, backward=backward) * expert_tokens_share(layout)
    experts = Traffic("", expert_bytes, cluster.link_gb_s(layout.expert))
    stream = tokens * element_bytes(model) * arch.hidden_size / (layout.tensor if layout.sequence else 1)
    hops = (2 if backward else 1) * (layout.pipeline > 1)
    pipeline = Traffic("", hops * stream, cluster.link_gb_s(2, layout.tensor * layout.data))
    seconds += sum(traffic.seconds(assumed.link_efficiency) for traffic in (tensor, experts, pipeline))
    return (work.micro_batches + layout.pipeline - 1) * seconds
