"""Scores of one set: of each problem, and the statistics over them. As JSON, and back."""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from megatron_entropic.evaluation.answering import Answers
from megatron_entropic.evaluation.answers import votes
from megatron_entropic.evaluation.intervals import mean_interval
from megatron_entropic.evaluation.scores import avg_at_k, distinct_fraction, majority_reward, pass_at_k
from megatron_entropic.evaluation.sets import OpenSet
from megatron_entropic.rollout.types import Rollout


@dataclass(frozen=True)
class ProblemScores:
    """One problem: `key` names its prompt in every file, `rewards` are its samples', `majority` that of their most frequent answer."""

    key: str
    prompt: str
    rewards: Annotated[tuple[float, ...], Field(min_length=1)]
    lengths: tuple[int, ...]
    majority: float
    greedy: float | None

    @property
    def avg(self) -> float:
        return sum(self.rewards) / len(self.rewards)


@dataclass(frozen=True)
class SetScores:
    """`statistics` by name: avg, pass, majority, greedy where there is one, avg_low, avg_high, length, truncated, distinct."""

    name: str
    samples: int
    pass_at: int
    temperature: float
    top_p: float
    max_new_tokens: int
    statistics: dict[str, float]
    problems: tuple[ProblemScores, ...]

    def metrics(self) -> dict[str, float]:
        """The statistics as metrics of a step."""
        return {f"validation/{self.name}/{name}": value for name, value in self.statistics.items()}

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


_ADAPTER = TypeAdapter(SetScores)


def set_scores_from(content: Any, where: str) -> SetScores:
    """What to_json gave, and what stands beside it. Raises ValueError starting with `where` for anything else."""
    try:
        if isinstance(content, dict):
            content = {field.name: content[field.name] for field in dataclasses.fields(SetScores) if field.name in content}
        return _ADAPTER.validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{where}: no scores of a set: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def score_set(opened: OpenSet, answers: Answers) -> SetScores:
    """The scores of all answers to a set."""
    settings, sampled = opened.settings, answers.sampled
    rollouts_PS = _grouped(sampled.rollouts, settings.samples)
    rewards_PS = _grouped(sampled.rewards, settings.samples)
    greedy_P = answers.greedy.rewards if answers.greedy else [None] * len(rewards_PS)
    problems = [opened.problems[rollouts[0].prompt_index] for rollouts in rollouts_PS]
    keys = _keys([problem.prompt for problem in problems])
    scored = tuple(
        ProblemScores(
            key=key,
            prompt=problem.prompt,
            rewards=tuple(rewards),
            lengths=tuple(len(rollout.response_ids) for rollout in rollouts),
            majority=majority_reward(votes([rollout.text for rollout in rollouts], rewards, problem.data), rewards),
            greedy=greedy,
        )
        for key, problem, rollouts, rewards, greedy in zip(keys, problems, rollouts_PS, rewards_PS, greedy_P, strict=True)
    )
    pass_at = settings.pass_at or settings.samples
    return SetScores(
        name=settings.name,
        samples=settings.samples,
        pass_at=pass_at,
        temperature=opened.sampling.temperature,
        top_p=opened.sampling.top_p,
        max_new_tokens=opened.sampling.max_new_tokens,
        statistics=_statistics(scored, sampled.rollouts, pass_at, [[r.text for r in rollouts] for rollouts in rollouts_PS]),
        problems=scored,
    )


def _statistics(
    problems: Sequence[ProblemScores], rollouts: Sequence[Rollout], pass_at: int, texts_PS: Sequence[Sequence[str]]
) -> dict[str, float]:
    rewards_PS = [problem.rewards for problem in problems]
    low, high = mean_interval([problem.avg for problem in problems])
    greedy = [problem.greedy for problem in problems if problem.greedy is not None]
    return {
        "avg": avg_at_k(rewards_PS),
        "avg_low": low,
        "avg_high": high,
        "pass": pass_at_k(rewards_PS, pass_at),
        "majority": sum(problem.majority for problem in problems) / len(problems),
        **({"greedy": sum(greedy) / len(greedy)} if greedy else {}),
        "length": sum(len(rollout.response_ids) for rollout in rollouts) / len(rollouts),
        "truncated": sum(rollout.finish_reason == "length" for rollout in rollouts) / len(rollouts),
        "distinct": distinct_fraction(texts_PS, rewards_PS),
    }


def _grouped(items: Sequence[Any], size: int) -> list[Any]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _keys(prompts: Sequence[str]) -> list[str]:
    """A name for each prompt that does not depend on the others, but for how often the same one came before."""
    seen: Counter[str] = Counter()
    keys = []
    for prompt in prompts:
        digest = hashlib.blake2b(prompt.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
        keys.append(f"{digest}.{seen[digest]}")
        seen[digest] += 1
    return keys


def paired(first: SetScores, second: SetScores) -> tuple[list[float], list[float]]:
    """Mean rewards of the problems that both have, in the first one's order."""
    others: Mapping[str, ProblemScores] = {problem.key: problem for problem in second.problems}
    both = [(problem.avg, others[problem.key].avg) for problem in first.problems if problem.key in others]
    return [one for one, _ in both], [other for _, other in both]
