"""Advantages from the rewards of a group of samples of one prompt.

Shapes: P prompts, S samples per prompt.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from megatron_entropic.config.schema import ADVANTAGE_ENTRY_POINTS, ADVANTAGES
from megatron_entropic.system.named_functions import named_function, raised

Advantage = Callable[[Tensor], Tensor]
"""[prompts, samples] rewards to [prompts, samples] advantages."""


def group_advantages(rewards_PS: Tensor, *, normalize_std: bool = True, eps: float = 1e-6) -> Tensor:
    """GRPO's group-relative advantage (arXiv 2402.03300; without the std: Dr. GRPO, arXiv 2503.20783).

        A_ps = (R_ps - mean_s R_ps) / (std_s R_ps + eps)        or without the denominator

    std is the unbiased one, as in the released codes; a group of one sample has advantage 0.

    Args:
        rewards_PS: [prompts, samples], any float type.
    Returns:
        [prompts, samples] float32. A group whose rewards are all equal has advantage exactly 0.
    Raises:
        ValueError: a reward is not finite; names the prompt and sample.
    """
    rewards_PS = _finite(rewards_PS)
    centred_PS = rewards_PS - rewards_PS.mean(dim=1, keepdim=True)
    all_equal_P1 = (rewards_PS == rewards_PS[:, :1]).all(dim=1, keepdim=True)
    if normalize_std and rewards_PS.shape[1] > 1:
        centred_PS = centred_PS / (rewards_PS.std(dim=1, keepdim=True) + eps)
    # The mean of equal rewards can differ from them by a rounding, which the std would blow up.
    return torch.where(all_equal_P1, torch.zeros_like(centred_PS), centred_PS)


def centred_advantages(rewards_PS: Tensor) -> Tensor:
    """`group_advantages` without the denominator."""
    return group_advantages(rewards_PS, normalize_std=False)


def leave_one_out_advantages(rewards_PS: Tensor) -> Tensor:
    """RLOO's advantage (arXiv 2402.14740): each sample against the mean of its group's others, an unbiased baseline.

        A_ps = R_ps - mean_{q != s} R_pq = S / (S - 1) (R_ps - mean_s R_ps)

    Args:
        rewards_PS: [prompts, samples], any float type; a group of one sample has no others, and advantage 0.
    Returns:
        [prompts, samples] float32. A group whose rewards are all equal has advantage exactly 0.
    Raises:
        ValueError: a reward is not finite; names the prompt and sample.
    """
    samples = rewards_PS.shape[1]
    return group_advantages(rewards_PS, normalize_std=False) * (samples / max(samples - 1, 1))


def _finite(rewards_PS: Tensor) -> Tensor:
    """The rewards as float32. Raises ValueError naming the first that is not finite."""
    rewards_PS = rewards_PS.float()
    bad = (~torch.isfinite(rewards_PS)).nonzero()
    if len(bad):
        prompt, sample = bad[0].tolist()
        raise ValueError(f"reward of prompt {prompt}, sample {sample} is {rewards_PS[prompt, sample].item()}; rewards must be finite")
    return rewards_PS


@cache
def make_advantage(name: str) -> Advantage:
    """The advantage `name` (`algorithm.advantage`): of ADVANTAGES, of an installed package, or the user's function.

    Raises ValueError when it cannot be imported. A user's function raises ValueError for whatever goes wrong in it, and where its
    advantages have another shape than the rewards or are not finite.
    """
    advantage: Advantage = named_function("algorithm.advantage", name, ADVANTAGES, ADVANTAGE_ENTRY_POINTS)
    if name in ADVANTAGES:
        return advantage

    def checked(rewards_PS: Tensor) -> Tensor:
        try:
            advantages_PS = advantage(rewards_PS)
        except (Exception, SystemExit) as error:
            raise ValueError(f"algorithm.advantage={name}: {raised(error)}") from error
        if not isinstance(advantages_PS, Tensor) or advantages_PS.shape != rewards_PS.shape or advantages_PS.is_complex():
            got = list(advantages_PS.shape) if isinstance(advantages_PS, Tensor) else type(advantages_PS).__name__
            raise ValueError(
                f"algorithm.advantage={name}: gave {got}, not a real torch tensor of the rewards' shape {list(rewards_PS.shape)}"
            )
        if len(bad := (~advantages_PS.isfinite()).any(dim=1).nonzero()):
            rewards_S, advantages_S = rewards_PS[bad[0, 0]].tolist(), advantages_PS[bad[0, 0]].tolist()
            raise ValueError(f"algorithm.advantage={name}: advantages {advantages_S} of a prompt with the rewards {rewards_S}")
        return advantages_PS.float()

    return checked
