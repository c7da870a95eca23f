"""Floating-point operations that a model's arithmetic takes, counted from its shapes; the base of MFU.

A product of [a, b] and [b, c] is 2abc operations. Forward, for a token at position t (from 0) of its sequence, per layer:

    projections    2 H (Q + 2 G) D + 2 Q D H        queries, keys and values; output
    attention      4 Q D (t + 1)                    scores and their mix of values, under a causal mask
    MLP            6 H F                            gate, up and down; in an MoE model once for each expert of a token, and 2 H E
                                                    for the router

with H the hidden size, Q query heads, G key/value heads of size D, F the MLP's inner size, E experts. The output head takes 2 H V
for each token whose logits are wanted. A backward pass takes twice the forward pass: the gradient of each product's two factors.
What is computed again to save memory is not counted, nor what is no product (norms, softmax, rotations): MFU is by the model's
arithmetic, not by what the machine was kept busy with.
"""

from collections.abc import Iterable, Sequence

from megatron_entropic.hf.architectures import Architecture

BACKWARD = 2
"""Backward passes in units of the forward pass."""


def projection_flops(arch: Architecture) -> int:
    """One layer's products for a token, but attention's."""
    query, key = arch.num_heads * arch.head_dim, arch.num_kv_heads * arch.head_dim
    experts = arch.num_experts_per_token if arch.num_experts else 1
    router = 2 * arch.hidden_size * (arch.num_experts or 0)
    return 2 * arch.hidden_size * (2 * query + 2 * key) + 6 * arch.hidden_size * arch.ffn_hidden_size * experts + router


def forward_flops(arch: Architecture, length: int, logits: int) -> int:
    """Of a forward pass over a sequence of `length` tokens, of which `logits` have theirs computed."""
    attention = 4 * arch.num_heads * arch.head_dim * length * (length + 1) // 2
    return arch.num_layers * (projection_flops(arch) * length + attention) + 2 * arch.hidden_size * arch.vocab_size * logits


def update_flops(arch: Architecture, sequences: Iterable[tuple[int, int]], forward_passes: float = 0.0) -> float:
    """Of training once on sequences of (prompt, response) tokens, with so many passes without gradients before."""
    return (1 + BACKWARD + forward_passes) * sum(forward_flops(arch, prompt + response, response) for prompt, response in sequences)


def generation_flops(arch: Architecture, sequences: Sequence[tuple[int, int]], samples_per_prompt: int) -> float:
    """Of generating them: each prompt read once for all of its samples, every response token computed once.

    The first response token's logits come with the prompt, the last response token is fed to nobody.
    """
    whole = sum(forward_flops(arch, prompt + response - 1, response) for prompt, response in sequences)
    shared = sum(forward_flops(arch, prompt, 1) for prompt, _ in sequences)
    firsts = sum(forward_flops(arch, prompt, 1) for prompt, _ in sequences[::samples_per_prompt])
    return float(whole - shared + firsts)
