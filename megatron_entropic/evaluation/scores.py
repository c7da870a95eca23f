"""Scores of a policy from its samples: pure functions of rewards and texts.

Shapes: P prompts, S samples per prompt.
"""

import math
from collections import Counter
from collections.abc import Hashable, Sequence


def avg_at_k(rewards_PS: Sequence[Sequence[float]]) -> float:
    """Mean reward over all samples of all prompts."""
    return math.fsum(map(math.fsum, rewards_PS)) / sum(map(len, rewards_PS))


def pass_at_k(rewards_PS: Sequence[Sequence[float]], k: int) -> float:
    """Chance that at least one of k samples has reward 1: the unbiased estimator 1 - C(S - c, k) / C(S, k) (arXiv 2107.03374).

    c is the number of samples with reward 1. Raises ValueError when a prompt has fewer than k samples.
    """
    chances = []
    for rewards_S in rewards_PS:
        samples, right = len(rewards_S), sum(reward == 1.0 for reward in rewards_S)
        if k > samples:
            raise ValueError(f"pass@{k} needs at least {k} samples of every prompt; there are {samples}")
        chances.append(1.0 - math.comb(samples - right, k) / math.comb(samples, k))
    return math.fsum(chances) / len(chances)


def distinct_fraction(texts_PS: Sequence[Sequence[str]], rewards_PS: Sequence[Sequence[float]]) -> float:
    """Different right answers over right answers, of all prompts together; 0 when nothing is right."""
    right = different = 0
    for texts_S, rewards_S in zip(texts_PS, rewards_PS, strict=True):
        answers = [text for text, reward in zip(texts_S, rewards_S, strict=True) if reward == 1.0]
        right += len(answers)
        different += len(set(answers))
    return different / right if right else 0.0


def majority_at_k(votes_PS: Sequence[Sequence[Hashable]], rewards_PS: Sequence[Sequence[float]]) -> float:
    """Mean reward of each prompt's most frequent answer; a vote of None counts for nothing, and a prompt without votes has 0.

    Of answers that are equally frequent each counts for its part, which no draw could do more fairly, and no order of samples changes.
    An answer's reward is the mean over the samples that gave it.
    """
    return math.fsum(majority_reward(votes, rewards) for votes, rewards in zip(votes_PS, rewards_PS, strict=True)) / len(votes_PS)


def majority_reward(votes: Sequence[Hashable], rewards: Sequence[float]) -> float:
    """majority_at_k of one prompt."""
    counts = Counter(vote for vote in votes if vote is not None)
    most = max(counts.values(), default=0)
    given: dict[Hashable, list[float]] = {answer: [] for answer, count in counts.items() if count == most}
    for vote, reward in zip(votes, rewards, strict=True):
        if vote in given:
            given[vote].append(reward)
    return math.fsum(math.fsum(group) / len(group) for group in given.values()) / len(given) if given else 0.0
