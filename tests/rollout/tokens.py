"""Rollouts of tests that care for texts or order and not for tokens."""

import numpy as np

from megatron_entropic.rollout.types import Rollout


def one_token_rollout(prompt_index: int, sample_index: int, text: str = "", server: str = "s") -> Rollout:
    """A response of one token to a prompt of one."""
    ids = np.array([3], dtype=np.int32)
    return Rollout(prompt_index, sample_index, ids, ids, np.array([-1.0], dtype=np.float32), text, "stop", 0, 0, server)
