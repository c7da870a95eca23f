"""A set's problems answered by an engine and judged: what training and the command `evaluate` both do."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

from megatron_entropic.config import RewardConfig
from megatron_entropic.evaluation.sets import OpenSet
from megatron_entropic.rollout.scoring import Scorer
from megatron_entropic.rollout.types import Rollout, RolloutEngine, RolloutError, SamplingEngine, SamplingParameters
from megatron_entropic.rollout.vocabulary import Vocabulary

LOCAL_PROMPTS = 32
"""Prompts that an in-process engine gets at a time, which says nothing before all are answered."""
Answered = Callable[[int], None]
"""Told how many more problems are answered."""


@dataclass(frozen=True)
class Judged:
    """Rollouts by prompt, then sample, their rewards, and what verifying them counted."""

    rollouts: list[Rollout]
    rewards: list[float]
    counts: dict[str, float]


@dataclass(frozen=True)
class Answers:
    """Of one set: samples of each problem, and one greedy answer to each where the set wants it."""

    sampled: Judged
    greedy: Judged | None


def sampling_engine(engine: RolloutEngine, name: str) -> SamplingEngine:
    """The engine `name` when it can sample otherwise than the run. Raises RolloutError when it cannot."""
    if "sampling" not in inspect.signature(engine.generate).parameters:
        raise RolloutError(
            f"rollout.engine={name}: its generate(prompts, samples_per_prompt, finished) takes no `sampling` (rollout/types.py), which "
            "validation needs; add it, or set validation.every=0"
        )
    return cast(SamplingEngine, engine)


def answer(
    engine: SamplingEngine, opened: OpenSet, reward: RewardConfig, vocabulary: Vocabulary, *, step: int, answered: Answered
) -> Answers:
    """All answers to a set, judged in processes as in training; they end with this call.

    `step` is what messages call the step (from 0). Raises RolloutError, VerifierError.
    """
    scorer = Scorer(opened.task, opened.task_cfg, opened.seed, reward, vocabulary)
    try:
        sampled = _judged(engine, opened, scorer, opened.settings.samples, opened.sampling, step, answered)
        greedy = None
        if opened.settings.greedy:
            greedy = _judged(engine, opened, scorer, 1, replace(opened.sampling, temperature=0.0, top_p=1.0), step, lambda count: None)
        return Answers(sampled, greedy)
    finally:
        scorer.close()


def _judged(
    engine: SamplingEngine, opened: OpenSet, scorer: Scorer, samples: int, sampling: SamplingParameters, step: int, answered: Answered
) -> Judged:
    rollouts: list[Rollout] = []
    per_call = len(opened.prompts) if engine.in_background else LOCAL_PROMPTS

    def finished(of_prompt: Sequence[Rollout]) -> None:
        scorer.begin(of_prompt, opened.problems)
        answered(1)

    for start in range(0, len(opened.prompts), per_call):
        asked = opened.prompts[start : start + per_call]
        some = engine.generate(asked, samples, finished, sampling=sampling)
        if not engine.in_background:
            scorer.begin(some, opened.problems)
            answered(len(asked))
        rollouts += some
    scores = scorer.finish(step, rollouts, opened.problems)
    return Judged(rollouts, scores.rewards, scores.counts)
