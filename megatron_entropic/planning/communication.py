"""Bytes that a rank sends in a step, by kind, and over which link.

Collectives are counted as rings: a reduce-scatter or all-gather of n bytes over r ranks sends n (r - 1) / r from each rank, an
all-reduce twice that.
"""

from collections.abc import Callable
from dataclasses import dataclass

from megatron_entropic.config import ModelConfig, ParallelConfig, RolloutConfig
from megatron_entropic.hf.architectures import Architecture
from megatron_entropic.planning.cluster import Cluster
from megatron_entropic.planning.model_memory import GRADIENT_BYTES, ModelSize, StageParameters, element_bytes, expert_replicas
from megatron_entropic.planning.workload import Workload

CONTROL_BYTES = 64
"""One all-reduce over all ranks for each pass: seven sums and a requested target, 8 bytes each (distributed/reductions.py)."""
STATISTICS_BYTES = 8 * 9
"""The further sums and maxima that a pass reports; sums, maxima, then one broadcast."""
CHECKSUM_READS = 2
"""Of every byte of an update, by each end (rollout/weight_sync/checksum.py)."""


@dataclass(frozen=True)
class Traffic:
    """Traffic of one kind that the busiest rank sends in one step."""

    kind: str
    bytes: float
    gb_s: float
    """Nominal bandwidth of the link."""

    def seconds(self, link_efficiency: float) -> float:
        return self.bytes / (self.gb_s * 1e9 * link_efficiency)


def ring(count: int) -> float:
    """Fraction of the bytes of a reduce-scatter or all-gather that each of `count` ranks sends."""
    return (count - 1) / count


def layer_traffic_per_token(arch: Architecture, model: ModelConfig, layout: ParallelConfig, *, backward: bool) -> float:
    """Bytes a tensor rank sends for one token of one layer: forward alone, or forward and backward.

    Two all-reduces each way; under sequence parallelism an all-gather and a reduce-scatter for each, and in the backward pass
    the all-gathers of the inputs again. model.recompute=full repeats the forward pass, selective its second half.
    """
    size = element_bytes(model) * arch.hidden_size
    of_mlp = 0 if arch.num_experts else 1  # experts are not split over the tensor ranks
    one = 2 * ring(layout.tensor) * size  # an all-reduce, or the pair in its place
    forward = one * (1 + of_mlp)
    if not backward:
        return forward
    again = {"none": 0.0, "selective": one * of_mlp, "full": forward}[model.recompute]
    regathered = ring(layout.tensor) * size * (1 + of_mlp) if layout.sequence else 0.0
    return 2 * forward + again + regathered


def expert_traffic_per_token(arch: Architecture, model: ModelConfig, layout: ParallelConfig, *, backward: bool) -> float:
    """Bytes an expert-parallel rank sends for one of its tokens of one layer: to its experts and back."""
    if not arch.num_experts or layout.expert == 1:
        return 0.0
    once = 2 * ring(layout.expert) * element_bytes(model) * arch.hidden_size * arch.num_experts_per_token
    return once * ((3 if model.recompute != "none" else 2) if backward else 1)


def expert_tokens_fraction(layout: ParallelConfig) -> float:
    """Fraction of a data-parallel rank's tokens that each of its tensor ranks dispatches."""
    return 1 / layout.tensor if layout.sequence else 1.0


def update_traffic(model: ModelConfig, layout: ParallelConfig, cluster: Cluster, parameters: StageParameters) -> list[Traffic]:
    """Of one optimizer update: gradients reduced to their shards, updated parameters gathered from theirs."""
    ranks = layout.data * layout.context
    copies = expert_replicas(layout)
    link = cluster.link_gb_s(ranks, layout.tensor)
    sizes = ring(ranks) * parameters.dense + ring(copies) * parameters.expert
    return [
        Traffic("data: gradient reduce-scatter", GRADIENT_BYTES * sizes, link),
        Traffic("data: parameter all-gather", element_bytes(model) * sizes, link),
    ]


def step_traffic(
    arch: Architecture, model: ModelConfig, layout: ParallelConfig, cluster: Cluster, work: Workload, stages: list[StageParameters]
) -> list[Traffic]:
    """Of a whole step, by kind, for the rank that sends most of each; kinds that do not occur are left out."""
    tokens = work.tokens / layout.data
    layers = arch.num_layers // layout.pipeline
    element = element_bytes(model) * arch.hidden_size

    def both(per_token: float, forward: float) -> float:
        return tokens * (per_token + work.forward_passes * forward)

    def of_layers(traffic: Callable[..., float]) -> float:
        return layers * both(traffic(arch, model, layout, backward=True), traffic(arch, model, layout, backward=False))

    in_node = cluster.link_gb_s(layout.tensor)
    tensor = of_layers(layer_traffic_per_token)
    ends = both(3 * ring(layout.tensor) * element, 2 * ring(layout.tensor) * element)  # embedding, hidden states of the head
    experts = of_layers(expert_traffic_per_token)
    split = layout.tensor if layout.sequence else 1
    neighbours = tokens * element / split * (2 + work.forward_passes) if layout.pipeline > 1 else 0.0
    # A stage that has more parameters sends more; ranks of one stage are tensor x data apart from the next stage's.
    largest = max(stages, key=lambda stage: stage.total)
    of_update = update_traffic(model, layout, cluster, largest)
    updates = [Traffic(traffic.kind, traffic.bytes * work.updates, traffic.gb_s) for traffic in of_update]
    passes = work.updates + work.forward_passes
    world = cluster.link_gb_s(layout.world_size)
    found = [
        Traffic("tensor: all-reduce" if not layout.sequence else "tensor: all-gather, reduce-scatter", tensor + ends, in_node),
        Traffic("pipeline: to the next stage and back", neighbours, cluster.link_gb_s(2, layout.tensor * layout.data)),
        *updates,
        Traffic("expert: all-to-all", experts * expert_tokens_fraction(layout), cluster.link_gb_s(layout.expert)),
        Traffic("control: the 64-byte all-reduce", 2 * CONTROL_BYTES * ring(layout.world_size) * passes, world),
        Traffic("control: reported statistics", 4 * STATISTICS_BYTES * ring(layout.world_size) * passes, world),
    ]
    return [traffic for traffic in found if traffic.bytes > 0]


def sync_traffic(
    size: ModelSize, model: ModelConfig, layout: ParallelConfig, rollout: RolloutConfig, cluster: Cluster
) -> list[Traffic]:
    """Of one weight update: to rank 0 from its tensor ranks and the other stages, then to all workers of all servers.

    And out of every worker's memory, for the checksum (rank 0 reads for its own while it sends). The kinds are counted one after
    the other, although the next bucket is gathered while one is sent: an upper bound.
    """
    if rollout.engine != "vllm":
        return []
    whole = element_bytes(model) * size.total
    far = cluster.link_gb_s(2, layout.tensor * layout.data)
    found = [
        Traffic("weight sync: gathered over tensor ranks", whole * ring(layout.tensor), cluster.link_gb_s(layout.tensor)),
        Traffic("weight sync: stages to rank 0", whole * ring(layout.pipeline), far),
        Traffic(
            "weight sync: rank 0 to all servers",
            whole,
            cluster.link_gb_s(layout.world_size + rollout.servers * rollout.tensor),
        ),
        Traffic("weight sync: checksum, from memory", CHECKSUM_READS * whole, cluster.gpu.hbm_gb_s),
    ]
    return [traffic for traffic in found if traffic.bytes > 0]
