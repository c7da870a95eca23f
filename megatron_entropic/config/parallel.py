"""Settings of the parallel layout, and of what its ranks do beside their products."""

from typing import Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from megatron_entropic.config.control import STRICT


@dataclass(frozen=True, config=STRICT)
class ParallelConfig:
    """Parallel layout of the policy; tensor x pipeline x context x data is the world size.

    Expert-parallel ranks are not counted: they are tensor x data ranks of a pipeline stage that hold different experts.
    """

    tensor: int = Field(default=1, ge=1, description="tensor-parallel ranks")
    pipeline: int = Field(default=1, ge=1, description="pipeline stages")
    context: int = Field(default=1, ge=1, le=1, description="context-parallel ranks; only 1 is available")
    expert: int = Field(
        default=1,
        ge=1,
        description="ranks among which the experts of an MoE model are split; taken out of the tensor x data ranks, so it divides "
        "those and the number of experts; 1 for dense models",
    )
    data: int = Field(default=1, ge=1, description="data-parallel replicas")
    sequence: bool = Field(default=False, description="sequence parallelism: shard norms and dropout over the tensor ranks")
    gradient_overlap: Literal["auto"] | bool = Field(
        default="auto",
        description="gradients are reduced over the data ranks while the backward pass goes on; auto: on GPUs, with several data ranks",
    )
    tensor_overlap: bool = Field(
        default=False,
        description="tensor ranks exchange activations while they multiply (Megatron's tp_comm_overlap): Transformer Engine's layers "
        "and sequence=true, in one node. Every micro-batch is padded to batch.max_tokens_per_micro_batch",
    )
    timeout_s: float = Field(
        default=600.0,
        gt=0,
        description="a collective that takes longer, or a rank silent for so long, ends the run; generation and such do not count",
    )

    device: Literal["auto", "cpu"] = Field(
        default="auto",
        description="auto: GPUs where the machine has any, and an error where torch cannot use them; cpu: the CPU, whatever there is",
    )

    @property
    def world_size(self) -> int:
        return self.tensor * self.pipeline * self.context * self.data

    @model_validator(mode="after")
    def _sequence_needs_tensor(self) -> "ParallelConfig":
        if self.sequence and self.tensor == 1:
            raise ValueError("parallel.sequence=true needs parallel.tensor >= 2: it shards activations over the tensor ranks")
        return self

    @model_validator(mode="after")
    def _expert_ranks_are_among_the_others(self) -> "ParallelConfig":
        ranks = self.tensor * self.context * self.data
        if ranks % self.expert:
            legal = ", ".join(str(n) for n in range(1, ranks + 1) if ranks % n == 0)
            raise ValueError(
                f"parallel.expert={self.expert} does not divide parallel.tensor={self.tensor} x parallel.context={self.context} x "
                f"parallel.data={self.data}: expert-parallel ranks are taken out of those; legal values: {legal}"
            )
        return self
