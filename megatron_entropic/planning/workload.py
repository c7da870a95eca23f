"""Workload of a step: samples, tokens, passes and floating-point operations, from settings and assumed lengths."""

import math
from dataclasses import dataclass

from megatron_entropic.config import BatchConfig, Config, ControlConfig, RolloutConfig
from megatron_entropic.control.kinds import kind_of, measures_first
from megatron_entropic.hf.architectures import Architecture
from megatron_entropic.planning.cluster import Assumptions
from megatron_entropic.planning.model_memory import ModelSize


@dataclass(frozen=True)
class Workload:
    """One step of a run; lengths are means."""

    samples: int
    prompt_tokens: float
    response_tokens: float
    updates: int
    forward_passes: float
    """Passes without gradients over all samples, in units of a whole step's samples."""
    micro_batches: int
    """Of one update, on each data-parallel rank."""

    @classmethod
    def of(cls, cfg: Config, assumed: Assumptions) -> "Workload":
        batch, response = cfg.batch, max(1.0, assumed.response_share * cfg.rollout.max_new_tokens)
        samples = batch.prompts_per_step * batch.samples_per_prompt
        fits = max(1.0, batch.max_tokens_per_micro_batch - response)
        prompt = min(assumed.prompt_tokens, fits)
        # A micro-batch holds whole samples.
        per_micro_batch = max(1, int(batch.max_tokens_per_micro_batch / (prompt + response)))
        micro_batches = math.ceil(samples / batch.mini_batches / cfg.parallel.data / per_micro_batch)
        return cls(
            samples, prompt, response, batch.mini_batches, forward_passes(batch, cfg.control, cfg.rollout), max(1, micro_batches)
        )

    @property
    def sample_tokens(self) -> float:
        return self.prompt_tokens + self.response_tokens

    @property
    def tokens(self) -> float:
        """Of all samples of a step."""
        return self.samples * self.sample_tokens


def forward_passes(batch: BatchConfig, control: ControlConfig, rollout: RolloutConfig) -> float:
    """Log-prob passes of a step: before the first update, for D of L_adjust, and to choose tokens by covariance."""
    kind = kind_of(control)
    prepared = measures_first(control, mini_batches=batch.mini_batches, max_staleness=rollout.max_staleness)
    counted = kind.steered and control.denominator == "high_prob_tokens"
    # The first update after `prepare` chooses from its log-probs.
    chosen = (1.0 - prepared / batch.mini_batches) if kind.selection else 0.0
    return float(prepared) + float(counted) + chosen


def active_layer_parameters(arch: Architecture, size: ModelSize) -> float:
    """Parameters of a layer that a token is multiplied with."""
    experts = size.experts_of_layer * arch.num_experts_per_token / arch.num_experts if arch.num_experts else 0.0
    return size.split_of_layer + size.whole_of_layer + experts


def layer_flops(arch: Architecture, size: ModelSize, length: float) -> float:
    """Of one layer's forward pass for a token of a sequence of `length`, under a causal mask."""
    return 2 * active_layer_parameters(arch, size) + 2 * arch.num_heads * arch.head_dim * length


def mlp_flops(arch: Architecture) -> float:
    """Of the part of `layer_flops` that model.recompute=selective computes again."""
    return 6 * arch.hidden_size * arch.ffn_hidden_size * max(1, arch.num_experts_per_token if arch.num_experts else 1)


def head_flops(arch: Architecture) -> float:
    """Of the output head's forward pass, for a response token; its backward pass computes the logits again."""
    return 2 * arch.vocab_size * arch.hidden_size
