"""Clip-Cov and KL-Cov: tokens chosen by the covariance of log-prob and advantage (arXiv 2505.22617).

Shapes: N response tokens of the whole mini-batch. Nothing here carries a gradient: a choice is a mask, not a loss.

A choice is a function of its arguments alone: ranks that hold the same [N] numbers choose the same tokens.
"""

import torch
from torch import Tensor


@torch.no_grad()
def token_covariance(log_prob_N: Tensor, advantage_N: Tensor) -> Tensor:
    """cov_t = (log pi_t - mean log pi) (A_t - mean A), the means over all N tokens.

    To first order a policy-gradient step lowers the entropy in proportion to the mean of cov, of which few tokens make up most.

    Args:
        log_prob_N: log pi(y_t) of the current policy, [tokens], nats.
        advantage_N: A_t, [tokens].
    Returns:
        [tokens] float64, nats x unit of the advantage; NaN everywhere when an input is not finite.
    """
    log_prob_N, advantage_N = log_prob_N.double(), advantage_N.double()
    return (log_prob_N - log_prob_N.mean()) * (advantage_N - advantage_N.mean())


@torch.no_grad()
def clip_cov_selection(
    log_prob_N: Tensor,
    advantage_N: Tensor,
    *,
    share: float,
    low: float,
    high: float,
    generator: torch.Generator,
    clipped_N: Tensor | None = None,
) -> Tensor:
    """The tokens whose policy gradient Clip-Cov removes: max(1, floor(share N)) drawn from those with low < cov_t < high.

    All candidates when they are fewer. Every token is given a random number and the candidates with the largest are drawn, so
    that a token more or less among the candidates (a rounding at a bound) leaves the draw of the others alone.

    Args:
        log_prob_N, advantage_N: as in token_covariance.
        generator: on the CPU; N float64 numbers are taken from it.
        clipped_N: bool, tokens that the ratio's clip has taken out already: no candidates, but part of the means.
    Returns:
        [tokens] bool.
    """
    covariance_N = token_covariance(log_prob_N, advantage_N)
    candidate_N = (covariance_N > low) & (covariance_N < high)
    if clipped_N is not None:
        candidate_N &= ~clipped_N
    random_N = torch.rand(len(covariance_N), generator=generator, dtype=torch.float64).to(covariance_N.device)
    return _largest(torch.where(candidate_N, random_N, -1.0), share) & candidate_N


@torch.no_grad()
def kl_cov_selection(log_prob_N: Tensor, advantage_N: Tensor, *, share: float) -> Tensor:
    """The tokens KL-Cov penalises: the max(1, floor(share N)) with the largest cov_t, ties by lowest index.

    Args:
        log_prob_N, advantage_N: as in token_covariance.
    Returns:
        [tokens] bool.
    """
    return _largest(token_covariance(log_prob_N, advantage_N), share)


def _largest(values_N: Tensor, share: float) -> Tensor:
    """Bool [tokens]: the max(1, floor(share N)) largest values, ties by lowest index."""
    count = max(1, int(share * len(values_N)))
    chosen_N = torch.zeros_like(values_N, dtype=torch.bool)
    chosen_N[values_N.argsort(descending=True, stable=True)[:count]] = True
    return chosen_N
