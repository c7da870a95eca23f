"""Memory of the output head on the last pipeline stage: tiles of the logits, never all of them (entropy/linear_head.py)."""

from megatron_entropic.config import ControlConfig, ModelConfig, ParallelConfig
from megatron_entropic.control.kinds import kind_of
from megatron_entropic.hf.architectures import Architecture
from megatron_entropic.planning.model_memory import element_bytes, vocabulary_shard
from megatron_entropic.system.logits_tiles import LogitsShape, tile_shape

CHUNK_TOKENS = 4096
"""As in entropy/sequence_chunks.py: under sequence parallelism the hidden states are gathered in chunks of at least so many tokens."""
SCALARS_PER_TOKEN = 160
"""Bytes a token of targets, masks, log-probs, entropies and what the loss keeps of them."""


def head_rows(layout: ParallelConfig, tokens: int) -> int:
    """Tokens whose hidden states are whole at a time."""
    chunks = tokens // CHUNK_TOKENS if layout.sequence else 1
    return -(-tokens // max(1, chunks))


def head_working_bytes(
    arch: Architecture, model: ModelConfig, layout: ParallelConfig, control: ControlConfig, tokens: int, gpu_bytes: int | None
) -> float:
    """Bytes the head takes for a micro-batch of `tokens` while it computes gradients, beside the hidden states it was given.

    `gpu_bytes`: memory of the GPU, which decides the size of the tiles; None on a CPU.
    """
    size, hidden, rows = element_bytes(model), arch.hidden_size, head_rows(layout, tokens)
    selects = bool(kind_of(control).clamped_entropy(control) and control.clamp > 0)
    columns = vocabulary_shard(arch, model, layout)
    tile = tile_shape(gpu_bytes, LogitsShape(rows, columns, columns, size), selects=selects)
    gradient = 4 * rows * hidden + (0 if size == 4 else size * rows * hidden)  # summed in float32, rounded once
    given = size * rows * hidden  # the unmasked tokens, gathered
    returned = size * tokens * hidden / (layout.tensor if layout.sequence else 1)
    return given + gradient + size * tile.elements + returned
