"""A rollout server's GPU: weights, key-value cache, what a weight update needs, and how fast it generates."""

import math
from dataclasses import dataclass

from megatron_entropic.config import Config
from megatron_entropic.hf.architectures import Architecture
from megatron_entropic.planning.cluster import GB, Assumptions, Cluster
from megatron_entropic.planning.model_memory import ModelSize, element_bytes
from megatron_entropic.planning.training_memory import BUCKET_BYTES
from megatron_entropic.planning.workload import Workload, active_layer_parameters, head_flops, layer_flops

CONTEXT_BYTES = 1 * GB
"""CUDA context and NCCL of a server's worker, outside rollout.gpu_memory_utilization."""


@dataclass(frozen=True)
class ServerMemory:
    """Bytes of one GPU of a rollout server."""

    weights: float
    cache: float
    """Memory left for the KV cache; negative when the weights alone do not fit."""
    overhead: float
    bucket: float
    """Receive buffer of a weight update, outside rollout.gpu_memory_utilization."""
    outside: float
    """Memory that rollout.gpu_memory_utilization leaves for it."""
    cache_per_token: float
    context: int
    """Longest sequence in tokens."""
    mean_length: float
    most_sequences: int
    """rollout.max_sequences."""

    @property
    def cached_tokens(self) -> int:
        return max(0, math.floor(self.cache / self.cache_per_token))

    @property
    def longest_sequences(self) -> int:
        """Sequences of the greatest length that the cache holds at once."""
        return self.cached_tokens // self.context

    @property
    def sequences(self) -> int:
        """Sequences of mean length that a server runs at once."""
        return min(self.most_sequences, int(self.cached_tokens / self.mean_length))

    @property
    def problem(self) -> str | None:
        """The reason why the server does not fit, with the setting that helps; None if it does."""
        if self.longest_sequences < 1:
            return (
                f"weights of {self.weights / GB:.1f} GB leave {max(self.cache, 0.0) / GB:.1f} GB of cache, less than one sequence of "
                f"{self.context} tokens ({self.cache_per_token * self.context / GB:.1f} GB); raise rollout.tensor"
            )
        if self.bucket + CONTEXT_BYTES > self.outside:
            return (
                f"a weight update needs {(self.bucket + CONTEXT_BYTES) / GB:.1f} GB outside the server's limit, which leaves "
                f"{self.outside / GB:.1f} GB; lower rollout.gpu_memory_utilization"
            )
        return None


def server_memory(arch: Architecture, cfg: Config, cluster: Cluster, assumed: Assumptions, work: Workload) -> ServerMemory:
    """Memory of one GPU of a server of rollout.tensor of them."""
    size, element = ModelSize.of(arch), element_bytes(cfg.model)
    memory = cluster.gpu.memory_gb * GB
    limit = cfg.rollout.gpu_memory_fraction * memory
    weights = element * size.total / cfg.rollout.tensor
    overhead = assumed.server_overhead_gb * GB
    heads = max(1.0, arch.num_kv_heads / cfg.rollout.tensor)
    largest = element * arch.hidden_size * max(arch.vocab_size, 2 * arch.ffn_hidden_size)
    return ServerMemory(
        weights=weights,
        cache=limit - weights - overhead,
        overhead=overhead,
        bucket=max(BUCKET_BYTES, largest),
        outside=memory - limit,
        cache_per_token=2 * arch.num_layers * heads * arch.head_dim * element,
        context=min(cfg.batch.max_tokens_per_micro_batch, arch.max_positions),
        mean_length=work.sample_tokens,
        most_sequences=cfg.rollout.max_sequences,
    )


def generation_seconds(
    arch: Architecture, cfg: Config, cluster: Cluster, assumed: Assumptions, work: Workload, memory: ServerMemory
) -> float:
    """Time in which all servers together generate a step's responses: bound by memory bandwidth, arithmetic or overhead.

    The longest response bounds it from below: its tokens come one after the other.
    """
    size, gpu, tensor = ModelSize.of(arch), cluster.gpu, cfg.rollout.tensor
    element = element_bytes(cfg.model)
    per_server = work.samples / cfg.rollout.servers
    batch = max(1.0, min(memory.sequences, per_server))
    length = work.prompt_tokens + work.response_tokens / 2
    flops_per_token = arch.num_layers * layer_flops(arch, size, 2 * length) + head_flops(arch)

    def decoding_step(sequences: float) -> float:
        read = _weights_read(arch, size, sequences) * element / tensor + sequences * length * memory.cache_per_token
        from_memory = read / (gpu.hbm_gb_s * 1e9 * assumed.hbm_efficiency)
        computed = sequences * flops_per_token / tensor / (gpu.tflops * 1e12 * assumed.mfu)
        return max(from_memory, computed) + assumed.decode_overhead_ms / 1e3

    prefilled = cfg.batch.prompts_per_step / cfg.rollout.servers * work.prompt_tokens
    prefill = prefilled * flops_per_token / tensor / (gpu.tflops * 1e12 * assumed.mfu)
    steady = per_server * work.response_tokens / batch * decoding_step(batch)
    return prefill + max(steady, cfg.rollout.max_new_tokens * decoding_step(1.0))


def _weights_read(arch: Architecture, size: ModelSize, sequences: float) -> float:
    """Parameters read in a decoding step: all of a dense model, and the experts that some sequence is sent to."""
    layer: float = size.layer
    if arch.num_experts:
        untouched = (1 - arch.num_experts_per_token / arch.num_experts) ** sequences
        layer = active_layer_parameters(arch, size) if sequences <= 1 else size.layer - untouched * size.experts_of_layer
    return arch.num_layers * layer + size.embedding
