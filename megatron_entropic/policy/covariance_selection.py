"""Token selection of Clip-Cov, KL-Cov and other kinds of control, over a mini-batch.

Shapes: N response tokens of the mini-batch.
"""

import hashlib

import numpy as np
import torch
from torch import Tensor

from megatron_entropic.algorithms import ratio_clipped
from megatron_entropic.config import Config
from megatron_entropic.control.kinds import TokenPool, kind_of
from megatron_entropic.policy.batching import Batch, held
from megatron_entropic.policy.objective import clip_range, old_log_probs


def choose_tokens(cfg: Config, batch: Batch, current_N: Tensor, update: int) -> Tensor:
    """The tokens that `control.kind` acts on in one update: [tokens] bool, the same on every rank that holds the same numbers.

    Args:
        batch: the whole mini-batch, every sample of it held here when the selection `needs_every_token`. Without
            `old_log_probs_N` the ratios to the policy before the step are 1.
        current_N: log-probs under the policy about to be updated, [tokens] float32, the same bits on every rank.
        update: number of updates so far; with trainer.seed it determines what a selection draws.
    """
    selection, device = kind_of(cfg.control).selection, current_N.device
    assert selection is not None, "the policy asks only where tokens are to be chosen"
    advantage_N = torch.repeat_interleave(
        torch.tensor([sample.advantage for sample in batch.samples]), torch.tensor([sample.response_length for sample in batch.samples])
    ).to(device)
    clipped_N = _clipped(cfg, batch, current_N, advantage_N) if selection.needs_every_token else None
    return selection.choose(cfg.control, TokenPool(current_N, advantage_N, clipped_N, _generator(cfg.trainer.seed, update)))


def _clipped(cfg: Config, batch: Batch, current_N: Tensor, advantage_N: Tensor) -> Tensor:
    """The tokens that the ratio's clip takes out, [tokens] bool."""
    device = current_N.device
    before_N = current_N if batch.old_log_probs_N is None else batch.old_log_probs_N.to(device)
    sampler_N = torch.from_numpy(
        np.concatenate([np.asarray(held(sample).sampler_log_probs, dtype=np.float32) for sample in batch.samples])
    ).to(device)
    ratio_N = (current_N - old_log_probs(cfg.algorithm, cfg.rollout, before_N, sampler_N)).exp()
    return ratio_clipped(ratio_N, advantage_N, **clip_range(cfg.algorithm, cfg.control))


def _generator(seed: int, update: int) -> torch.Generator:
    """Depends on the run's seed and the number of updates alone: a resumed run, and every layout, draws the same."""
    digest = hashlib.blake2b(f"token choice {seed}/{update}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
