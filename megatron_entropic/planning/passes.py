"""Memory of a forward and backward pass on one rank of a pipeline stage: what is kept, and the most that is computed with."""

from collections.abc import Callable
from dataclasses import dataclass

from megatron_entropic.config import Config
from megatron_entropic.hf.architectures import Architecture
from megatron_entropic.planning.activations import Implementation, Saved, Unevenness, Widths, layer_inventory
from megatron_entropic.planning.lm_head import SCALARS_PER_TOKEN, head_working_bytes
from megatron_entropic.planning.model_memory import vocabulary_shard


@dataclass(frozen=True)
class PassMemory:
    """Bytes beside weights, gradients and optimizer state. All methods take a pipeline stage, from 0."""

    arch: Architecture
    cfg: Config
    implementation: Implementation
    uneven: Unevenness
    tokens: int
    """Of the fullest micro-batch."""
    micro_batches: int
    """Of one update."""
    gpu_bytes: int | None
    """Memory of the GPU; None on a CPU."""

    @property
    def _widths(self) -> Widths:
        return Widths.of(self.arch, self.cfg.model, self.cfg.parallel)

    @property
    def _stream(self) -> float:
        """The residual stream of a micro-batch."""
        return self.tokens * self._widths.element * self._widths.stream

    def _sum(self, wanted: Callable[[Saved], bool]) -> float:
        inventory = layer_inventory(self.arch, self.cfg.model, self.cfg.parallel, self.implementation, self.uneven)
        return self.tokens * sum(saved.bytes_per_token for saved in inventory if wanted(saved))

    def in_flight(self, stage: int) -> int:
        """Micro-batches whose activations are kept at once: each stage is one forward pass ahead of the next."""
        return min(self.micro_batches, self.cfg.parallel.pipeline - stage)

    def layer(self) -> float:
        """Activations that one layer keeps of one micro-batch."""
        match self.cfg.model.recompute:
            case "none":
                return self._sum(lambda saved: True)
            case "selective":
                return self._sum(lambda saved: saved.part != "mlp") + self._stream
            case "full":
                return self._stream

    def micro_batch(self, stage: int) -> float:
        """Activations that a stage keeps of one micro-batch, without the output head: layers, and tensors received and sent."""
        ends = (stage > 0) + (stage < self.cfg.parallel.pipeline - 1)
        return self.arch.num_layers // self.cfg.parallel.pipeline * self.layer() + ends * self._stream

    def head_kept(self, stage: int) -> float:
        """Activations that the final norm and the output head keep of one micro-batch, on the last stage."""
        if stage < self.cfg.parallel.pipeline - 1:
            return 0.0
        norm = (8 if self.implementation == "local" else self._widths.element) * self._widths.stream
        return self.tokens * (norm + SCALARS_PER_TOKEN) + self._stream

    def head_working(self, stage: int) -> float:
        """Working memory of the output head, on the last stage."""
        layout = self.cfg.parallel
        if stage < layout.pipeline - 1:
            return 0.0
        return head_working_bytes(self.arch, self.cfg.model, layout, self.cfg.control, self.tokens, self.gpu_bytes)

    def layer_working(self) -> float:
        """Working memory of a layer's backward pass: recomputed activations, gradients, one weight's gradient."""
        widths = self._widths
        again = {"none": 0.0, "selective": self._sum(lambda saved: saved.part == "mlp"), "full": self._sum(lambda saved: True)}
        gradients = self.tokens * widths.element * (widths.hidden + widths.inner) + self._stream
        split = 1 if self.arch.num_experts else self.cfg.parallel.tensor
        weight = 2 * self.arch.ffn_hidden_size * self.arch.hidden_size // split
        return again[self.cfg.model.recompute] + gradients + widths.element * weight

    def embedding_working(self, stage: int) -> float:
        """The embedding's gradient before it is added to its buffer: on the first stage."""
        if stage > 0:
            return 0.0
        widths = self._widths
        rows = vocabulary_shard(self.arch, self.cfg.model, self.cfg.parallel)
        return widths.element * widths.hidden * (rows + self.tokens) + self._stream

    def peak(self, stage: int) -> float:
        """The most of a whole update's passes."""
        kept, flights = self.micro_batch(stage), self.in_flight(stage)
        at_head = flights * kept + self.head_kept(stage) + self.head_working(stage)
        in_a_layer = flights * kept + self.layer_working()
        at_embedding = (flights - 1) * kept + self.embedding_working(stage)
        return max(at_head, in_a_layer, at_embedding)
