"""Weights, gradients and optimizer state of a training rank, by pipeline stage, from the tables in hf/tables.py.

What Megatron-Core allocates: parameters in the model's dtype, one float32 gradient buffer, and, split over the data-parallel
ranks, Adam's two moments and (for half-precision parameters) a float32 copy of the parameters. Experts are split over the
expert-parallel ranks, and their optimizer state over the tensor x data ranks that hold the same experts.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

from megatron_entropic.config import ModelConfig, ParallelConfig
from megatron_entropic.hf.architectures import Architecture
from megatron_entropic.hf.tables import Row, checkpoint_rows, hf_shapes, padded_vocab_size

GRADIENT_BYTES = 4


@dataclass(frozen=True)
class ModelSize:
    """Elements of the parameters of a whole model, by how they are split."""

    layers: int
    split_of_layer: int
    """Of one layer, divided over the tensor ranks."""
    whole_of_layer: int
    """Of one layer, the same on every tensor rank."""
    experts_of_layer: int
    """Of one layer, in all its experts together."""
    embedding: int
    """Of the embedding without padding; the output head has as many."""
    final_norm: int
    tied: bool

    @classmethod
    def of(cls, arch: Architecture) -> "ModelSize":
        return _model_size(arch)

    @classmethod
    def counted(cls, arch: Architecture) -> "ModelSize":
        """As `of`, counted again."""
        one_layer = replace(arch, num_layers=1)
        shapes = hf_shapes(one_layer)

        def elements(row: Row) -> int:
            return sum(math.prod(shapes[name]) for name in row.hf)

        rows = [row for row in checkpoint_rows(one_layer) if row.megatron.startswith("decoder.layers.")]
        return cls(
            layers=arch.num_layers,
            split_of_layer=sum(elements(row) for row in rows if row.split_over_tensor_ranks),
            whole_of_layer=sum(elements(row) for row in rows if row.expert is None and not row.split_over_tensor_ranks),
            experts_of_layer=sum(elements(row) for row in rows if row.expert is not None),
            embedding=arch.vocab_size * arch.hidden_size,
            final_norm=arch.hidden_size,
            tied=arch.tied_embeddings,
        )

    @property
    def layer(self) -> int:
        return self.split_of_layer + self.whole_of_layer + self.experts_of_layer

    @property
    def total(self) -> int:
        """Parameters of the whole model, as a Hugging Face checkpoint holds them."""
        return self.layers * self.layer + self.embedding * (1 if self.tied else 2) + self.final_norm


@lru_cache
def _model_size(arch: Architecture) -> ModelSize:
    """Counting takes milliseconds where there are many experts, and a plan asks for every layout."""
    return ModelSize.counted(arch)


@dataclass(frozen=True)
class StageParameters:
    """Elements that one rank of a pipeline stage holds."""

    dense: int
    expert: int

    @property
    def total(self) -> int:
        return self.dense + self.expert


@dataclass(frozen=True)
class ModelMemory:
    """Bytes of one rank of a pipeline stage that are there for the whole run."""

    parameters: float
    gradients: float
    optimizer: float

    @property
    def total(self) -> float:
        return self.parameters + self.gradients + self.optimizer


def element_bytes(model: ModelConfig) -> int:
    """Bytes of a weight or an activation."""
    return 2 if model.dtype == "bfloat16" else 4


def vocabulary_shard(arch: Architecture, model: ModelConfig, layout: ParallelConfig) -> int:
    """Rows of the embedding, or of the output head, of one tensor rank."""
    return padded_vocab_size(arch.vocab_size, model.vocab_pad_multiple, layout.tensor) // layout.tensor


def stage_parameters(arch: Architecture, size: ModelSize, model: ModelConfig, layout: ParallelConfig, stage: int) -> StageParameters:
    """Memory of a rank of pipeline stage `stage` (from 0); a tied last stage has its own copy of the embedding."""
    layers = arch.num_layers // layout.pipeline
    vocabulary = vocabulary_shard(arch, model, layout) * arch.hidden_size
    first, last = stage == 0, stage == layout.pipeline - 1
    dense = layers * (size.split_of_layer // layout.tensor + size.whole_of_layer)
    dense += vocabulary * first + size.final_norm * last
    dense += vocabulary * (last and not (first and size.tied))
    return StageParameters(dense, layers * size.experts_of_layer // layout.expert)


def expert_replicas(layout: ParallelConfig) -> int:
    """Ranks of a pipeline stage that hold the same experts."""
    return max(1, layout.tensor * layout.context * layout.data // layout.expert)


def model_memory(parameters: StageParameters, model: ModelConfig, layout: ParallelConfig) -> ModelMemory:
    """Bytes of a rank's parameters, gradients and its shard of the optimizer state."""
    size = element_bytes(model)
    state = 12 if size == 2 else 8
    shards = layout.data * layout.context
    return ModelMemory(
        parameters=size * parameters.total,
        gradients=GRADIENT_BYTES * parameters.total,
        optimizer=state * (parameters.dense / shards + parameters.expert / expert_replicas(layout)),
    )


def largest_parameter(arch: Architecture, model: ModelConfig, layout: ParallelConfig, stage: int) -> int:
    """Elements of the largest parameter of a rank: a stage's vocabulary shard, or the MLP's first matrix."""
    split = 1 if arch.num_experts else layout.tensor
    matrix = 2 * arch.ffn_hidden_size * arch.hidden_size // split
    ends = stage in (0, layout.pipeline - 1)
    return max(matrix, vocabulary_shard(arch, model, layout) * arch.hidden_size if ends else 0)
