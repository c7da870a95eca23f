"""Activations that a training rank keeps of a micro-batch for its backward pass, layer by layer, as autograd saves them.

Two implementations of the layers: `local`, as recorded on a CPU (tests/planning measures it), and `transformer_engine`, whose
fused layers keep less. Everything is in bytes a token of the micro-batch on one rank; under sequence parallelism a rank's shard
of the residual stream and the norms is 1 / tensor ranks of it.
"""

from dataclasses import dataclass
from typing import Literal

from megatron_entropic.config import ModelConfig, ParallelConfig
from megatron_entropic.hf.architectures import Architecture
from megatron_entropic.planning.model_memory import element_bytes

Implementation = Literal["local", "transformer_engine"]


@dataclass(frozen=True)
class Saved:
    """One thing that is kept for the backward pass."""

    part: Literal["norms", "attention", "mlp"]
    what: str
    bytes_per_token: float


@dataclass(frozen=True)
class Unevenness:
    """Imbalance of a micro-batch: unequal sequence lengths and expert loads."""

    packing_padding: float = 1.0
    """Padded tokens of the local attention for each token."""
    expert_imbalance: float = 1.0
    """Tokens of the busiest expert-parallel rank over their mean."""


@dataclass(frozen=True)
class Widths:
    """Features of a token on one rank."""

    stream: float
    """Of the residual stream."""
    hidden: int
    query: float
    key: float
    """Of the keys, and of the values; ranks that share a key head each have it."""
    mixed: float
    """Of queries, keys and values as the projection gives them: of all heads where ranks share key heads."""
    inner: float
    """Of the MLP, or of the experts that a token is sent to: experts are not split."""
    element: int
    """Bytes of one."""

    @classmethod
    def of(cls, arch: Architecture, model: ModelConfig, layout: ParallelConfig) -> "Widths":
        tensor = layout.tensor
        query, key = arch.num_heads * arch.head_dim, arch.num_kv_heads * arch.head_dim
        shared = tensor > arch.num_kv_heads
        tokens_split = tensor if layout.sequence else 1
        experts = arch.num_experts_per_token if arch.num_experts else 0
        return cls(
            stream=arch.hidden_size / tokens_split,
            hidden=arch.hidden_size,
            query=query / tensor,
            key=arch.head_dim if shared else key / tensor,
            mixed=query + 2 * key if shared else (query + 2 * key) / tensor,
            inner=arch.ffn_hidden_size * experts / tokens_split if experts else arch.ffn_hidden_size / tensor,
            element=element_bytes(model),
        )


def layer_inventory(
    arch: Architecture, model: ModelConfig, layout: ParallelConfig, implementation: Implementation, uneven: Unevenness
) -> tuple[Saved, ...]:
    """Everything saved of one layer without recomputation."""
    widths, fused = Widths.of(arch, model, layout), implementation == "transformer_engine"
    attention = _fused_attention(arch, widths) if fused else _local_attention(arch, layout.tensor, widths, uneven.packing_padding)
    if not arch.num_experts:
        return attention + _mlp(widths, fused=fused)
    return attention + _experts(arch, widths, uneven.expert_imbalance if layout.expert > 1 else 1.0, fused=fused)


def _local_attention(arch: Architecture, tensor: int, widths: Widths, padding: float) -> tuple[Saved, ...]:
    b, heads = widths.element, arch.num_heads / tensor
    saved = [
        Saved("norms", "input and normalized input of the first norm, float32", 8 * widths.stream),
        Saved("attention", "input of the qkv projection", b * widths.stream),
        Saved("attention", "cosines and sines of queries and keys", 4 * b * arch.head_dim),
        Saved("attention", "padded queries, keys, values", padding * b * (widths.query + 2 * widths.key)),
        Saved("attention", "output, and its row sums", padding * (b * widths.query + 4 * heads)),
        Saved("attention", "where tokens are in the padded batch", 8 * padding),
        Saved("norms", "input and normalized input of the second norm, float32", 8 * widths.stream),
    ]
    if padding > 1:  # else the output lies where the projection takes it
        saved.append(Saved("attention", "input of the output projection", b * widths.query))
    if arch.qk_norm:
        # What is float32 already is a view into queries, keys and values together, and keeps them.
        shared = widths.key == arch.head_dim and tensor > arch.num_kv_heads
        inputs = 4 * (widths.query + widths.key) if b == 2 else 4 * (widths.mixed + (0 if shared else widths.query))
        saved.append(Saved("attention", "inputs of the query and key norms, float32", inputs))
        saved.append(Saved("attention", "normalized queries and keys, float32", 4 * (widths.query + widths.key)))
    return tuple(saved)


def _fused_attention(arch: Architecture, widths: Widths) -> tuple[Saved, ...]:
    b = widths.element
    normed = b * widths.query if arch.qk_norm else 0
    return (
        Saved("norms", "input of the first norm", b * widths.stream),
        Saved("attention", "input of the qkv projection", b * widths.stream),
        Saved("attention", "queries, keys, values before rotation", b * widths.mixed + normed),
        Saved("attention", "rotated queries and keys", b * (widths.query + widths.key)),
        Saved("attention", "output, and its row sums", b * widths.query + 4 * widths.query / arch.head_dim),
        Saved("norms", "input of the second norm", b * widths.stream),
    )


def _mlp(widths: Widths, *, fused: bool) -> tuple[Saved, ...]:
    inner = 3 if fused else 5  # gate and up, and their product; unfused also silu(gate) and a copy of up
    return (
        Saved("mlp", "input of the MLP", widths.element * widths.stream),
        Saved("mlp", "inside the MLP", widths.element * inner * widths.inner),
    )


def _experts(arch: Architecture, widths: Widths, imbalance: float, *, fused: bool) -> tuple[Saved, ...]:
    """Each token goes whole to its experts; they scale the product by the router's weight before their second matrix."""
    b, copies, fraction = widths.element, arch.num_experts_per_token, widths.stream / widths.hidden
    assert arch.num_experts is not None
    inner = 3 if fused else 6
    return (
        Saved("mlp", "input of router and dispatch", b * widths.stream),
        Saved("mlp", "scores and choices of the router", (5 * arch.num_experts + 20 * copies) * fraction),
        Saved("mlp", "tokens by expert", imbalance * b * copies * widths.stream),
        Saved("mlp", "inside the experts", imbalance * b * inner * widths.inner),
    )
