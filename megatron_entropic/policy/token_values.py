"""What an update did with each response token: collected on the last stage, for the record of rollout.record_tokens.

Shapes: T packed positions of a micro-batch, N response tokens of the mini-batch, Y fields of a token.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from megatron_entropic.control import Coefficients
from megatron_entropic.distributed.parallel import Parallel
from megatron_entropic.distributed.reductions import broadcast_from_last_stage
from megatron_entropic.entropy import TokenStatistics
from megatron_entropic.policy.batching import Batch, MicroBatch
from megatron_entropic.policy.objective import Objective

TokenValues = Mapping[str, npt.NDArray[np.float32]]
"""Some of TOKEN_VALUES by name, [N] each, in host memory."""

TOKEN_VALUES = ("entropy", "clamped_entropy", "log_prob", "weight", "plain_weight", "actuator")
"""Fields of a token: entropy, clamped_entropy (only where measured): of the policy about to be updated, nats. log_prob: of the policy
before the step. weight: minus the derivative of the token's loss by its log-prob, so that a positive one makes the token likelier (of
an importance weight, ratio, clip, advantage and alpha what applies). plain_weight: the same without control; the difference is what
alpha and the selection of tokens do. actuator: m_t. An entropy bonus pulls at all tokens alike and is in the coefficients."""


class TokenRecorder:
    """Collects the TOKEN_VALUES of one mini-batch while its micro-batches are computed. Changes nothing in what is trained."""

    def __init__(self, batch: Batch, device: torch.device, *, clamped: bool) -> None:
        self.fields = tuple(name for name in TOKEN_VALUES if clamped or name != "clamped_entropy")
        self._values_YN = torch.zeros(len(self.fields), batch.response_tokens, dtype=torch.float32, device=device)

    def add(self, objective: Objective, stats: TokenStatistics, micro_batch: MicroBatch, measured: TokenStatistics) -> None:
        """Adds the tokens of a micro-batch. `measured`: the statistics whose entropies are reported."""
        losses, mask_T = objective.token_losses(_detached(stats), micro_batch), micro_batch.mask_T
        found: dict[str, Tensor | None] = {
            "entropy": measured.entropy,
            "clamped_entropy": measured.clamped_entropy,
            "log_prob": losses.before_T,
            "weight": _weight(objective, stats, micro_batch),
            "plain_weight": _weight(Objective(objective.cfg, Coefficients()), stats, replace(micro_batch, selected_T=None)),
            "actuator": losses.actuator_T,
        }
        rows = micro_batch.response_index_T[mask_T]
        for values_N, name in zip(self._values_YN, self.fields, strict=True):
            values_T = found[name]
            assert values_T is not None, "the clamped entropy is a field only where it is measured"
            values_N[rows] = values_T.detach()[mask_T].float()

    def collect(self, parallel: Parallel) -> TokenValues:
        """The values of all N tokens by name, on every rank. Collectives: those of `broadcast_from_last_stage`, 4 Y N bytes."""
        values_YN = broadcast_from_last_stage(self._values_YN, parallel).cpu().numpy()
        return dict(zip(self.fields, values_YN, strict=True))


def _detached(stats: TokenStatistics) -> TokenStatistics:
    return TokenStatistics(*(None if values_T is None else values_T.detach() for values_T in stats))  # type: ignore[arg-type]


def _weight(objective: Objective, stats: TokenStatistics, batch: MicroBatch) -> Tensor:
    """Minus the derivative of each token's loss by its log-prob, [T], from a graph of its own: that of the update is not touched."""
    with torch.enable_grad():
        log_prob_T = stats.log_prob.detach().requires_grad_()
        losses = objective.token_losses(_detached(stats)._replace(log_prob=log_prob_T), batch)
        (gradient_T,) = torch.autograd.grad(losses.total_T.sum(), log_prob_T)
    return -gradient_T
