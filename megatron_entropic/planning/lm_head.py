"""Memory of the output head on the last pipeline stage: tiles of the logits, never all of them (entropy/linear_head.py)."""

from megatron_entropic.config import ControlConfig, ModelConfig, ParallelConfig
from megatron_entropic.control.kinds import kind_of
from megatron_entropic.hf.architectures import Architecture
from megatron_entropic.planning.model_memory import element_bytes, vocabulary_shard

CHUNK_BYTES, TILES, MIN_COLUMNS, MIN_ELEMENTS, ALIGNMENT = 256 * 2**20, 160, 1024, 2**19, 64
"""As in entropy/linear_head.py, which imports torch; a test holds them equal."""
CHUNK_TOKENS = 4096
"""As in entropy/sequence_chunks.py: under sequence parallelism the hidden states are gathered in chunks of at least so many tokens."""
SCALARS_PER_TOKEN = 160
"""Bytes a token of targets, masks, log-probs, entropies and what the loss keeps of them."""


def tile_shape(tokens: int, columns: int, *, selects: bool) -> tuple[int, int]:
    """(tokens, columns) of a tile of the logits of `tokens` by this rank's `columns`; `selects`: for the clamped entropy."""
    if selects:
        height, width = max(1, CHUNK_BYTES // (4 * columns)), columns
    else:
        height, width = tokens, max(-(-columns // TILES), MIN_COLUMNS, MIN_ELEMENTS // tokens)
        width = min(-(-width // ALIGNMENT) * ALIGNMENT, max(1, CHUNK_BYTES // (4 * tokens)))
    return min(height, tokens), max(1, min(width, columns))


def head_rows(layout: ParallelConfig, tokens: int) -> int:
    """Tokens whose hidden states are whole at a time."""
    chunks = tokens // CHUNK_TOKENS if layout.sequence else 1
    return -(-tokens // max(1, chunks))


def head_working_bytes(arch: Architecture, model: ModelConfig, layout: ParallelConfig, control: ControlConfig, tokens: int) -> float:
    """Bytes the head takes for a micro-batch of `tokens` while it computes gradients, beside the hidden states it was given."""
    size, hidden, rows = element_bytes(model), arch.hidden_size, head_rows(layout, tokens)
    selects = bool(kind_of(control).clamped_entropy(control) and control.clamp > 0)
    height, width = tile_shape(rows, vocabulary_shard(arch, model, layout), selects=selects)
    gradient = 4 * rows * hidden + (0 if size == 4 else size * rows * hidden)  # summed in float32, rounded once
    given = size * rows * hidden  # the unmasked tokens, gathered
    returned = size * tokens * hidden / (layout.tensor if layout.sequence else 1)
    placeholder = size * vocabulary_shard(arch, model, layout) * hidden  # what autograd is given for the weight
    return given + gradient + size * height * width + returned + placeholder
