"""Advantages from the rewards of a group of samples of one prompt.

Shapes: P prompts, S samples per prompt.
"""

import torch
from torch import Tensor


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
    rewards_PS = rewards_PS.float()
    bad = (~torch.isfinite(rewards_PS)).nonzero()
    if len(bad):
        prompt, sample = bad[0].tolist()
        raise ValueError(f"reward of prompt {prompt}, sample {sample} is {rewards_PS[prompt, sample].item()}; rewards must be finite")
    centred_PS = rewards_PS - rewards_PS.mean(dim=1, keepdim=True)
    all_equal_P1 = (rewards_PS == rewards_PS[:, :1]).all(dim=1, keepdim=True)
    if normalize_std and rewards_PS.shape[1] > 1:
        centred_PS = centred_PS / (rewards_PS.std(dim=1, keepdim=True) + eps)
    # The mean of equal rewards can differ from them by a rounding, which the std would blow up.
    return torch.where(all_equal_P1, torch.zeros_like(centred_PS), centred_PS)
