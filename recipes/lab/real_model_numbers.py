"""The numbers of one run of the real-model lab, as found in its folder, finished or not.

Updates count from 1. Entropies are nats a response token, token means of one update's responses; update k's is of the policy before it.
"""

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_entropic.observability.metrics import read_metrics
from recipes.lab.real_model_runs import Plan, RealRun
from recipes.lab.real_model_training import GREEDY, SAMPLED, changed_settings
from recipes.lab.settling import mean, moving_mean, settled_from

DIGITS = 5
"""Of the curves in the JSON file."""


@dataclass(frozen=True)
class Level:
    """An entropy against its target, from update `late_from` on; `error` and `uncertainty` are fractions of the target.

    `uncertainty`: standard error that `error` has from the noise of the single updates, taken as independent.
    """

    mean: float
    error: float | None
    uncertainty: float | None


@dataclass(frozen=True)
class HeldOutScores:
    """The final policy on the held-out sums: greedy accuracy, and at temperature 1 pass@1 and pass@`samples`."""

    problems: int
    samples: int
    greedy: float
    pass_at_1: float
    pass_at_k: float


@dataclass(frozen=True)
class Numbers:
    """One run. None: not applicable, or the run is not that far. Excursions: largest distances, as signed fractions of the target."""

    name: str
    title: str
    seed: int
    factor: float | None
    """The target in multiples of the initial entropy."""
    updates: int
    planned: int
    initial: float | None
    target: float | None
    level: Level | None
    settled: int | None
    excursion_smooth: float | None
    excursion_single: float | None
    reward: float | None
    noise: float | None
    """Of one update's entropy: root mean square of the differences of successive updates, over sqrt 2. Movement counts as noise."""
    noise_estimated: float | None
    """The controller's own, at the run's end."""
    step_seconds: float | None
    scores: HeldOutScores | None
    code: tuple[str, ...]
    """Versions of the project that trained it, the first first."""
    changed: tuple[str, ...]
    """Settings that were others than they are for this run today."""
    entropy: tuple[float | None, ...]
    alpha: tuple[float | None, ...]
    rewards: tuple[float | None, ...]

    @property
    def complete(self) -> bool:
        """Whether it is trained to its end and scored."""
        return self.updates >= self.planned and self.scores is not None


def numbers_of(plan: Plan, run: RealRun, out: Path) -> Numbers:
    """The run as far as it is. Raises ValueError for files that are malformed."""
    folder = out / run.name
    lines = read_metrics(folder / "metrics.jsonl") if (folder / "metrics.jsonl").is_file() else []
    lines = lines[: plan.updates]
    entropy = [math.nan if line["policy/entropy"] is None else float(line["policy/entropy"]) for line in lines]
    target = entropy[0] * run.target if entropy and run.target is not None else None
    smooth, late = moving_mean(entropy), slice(plan.late_from - 1, None)
    settled = settled_from(smooth, target) if target else None
    noise = noise_of(entropy[late])
    return Numbers(
        name=run.name,
        title=run.title,
        seed=run.seed,
        factor=run.target,
        updates=len(lines),
        planned=plan.updates if run.trained else 0,
        initial=entropy[0] if entropy else None,
        target=target,
        level=level_of(entropy[late], target, noise),
        settled=None if settled is None else settled + 1,
        excursion_smooth=excursion(smooth[plan.calm_after :], target),
        excursion_single=excursion(entropy[plan.calm_after :], target),
        reward=_mean_of(lines[late], "reward/mean"),
        noise=noise,
        noise_estimated=lines[-1].get("control/measurement_noise") if lines else None,
        step_seconds=_mean_of(lines, "time/step_s"),
        scores=_scores(folder),
        code=_code(folder),
        changed=tuple(changed_settings(folder, plan, run)),
        entropy=_curve(lines, "policy/entropy"),
        alpha=_curve(lines, "control/alpha"),
        rewards=_curve(lines, "reward/mean"),
    )


def level_of(entropy: Sequence[float], target: float | None, noise: float | None) -> Level | None:
    """The mean entropy and its distance from the target; None without an update."""
    if not entropy:
        return None
    if target is None:
        return Level(mean(entropy), None, None)
    uncertainty = None if noise is None else noise / math.sqrt(len(entropy)) / target
    return Level(mean(entropy), mean(entropy) / target - 1, uncertainty)


def excursion(values: Sequence[float], target: float | None) -> float | None:
    """The largest distance from the target, as a fraction of it, with its sign; None without a target or a value."""
    return max((value / target - 1 for value in values), key=abs) if values and target is not None else None


def noise_of(entropy: Sequence[float]) -> float | None:
    """Standard deviation of one value from the differences of neighbours; None for fewer than three values."""
    if len(entropy) < 3:
        return None
    return math.sqrt(mean([(after - before) ** 2 for before, after in itertools.pairwise(entropy)]) / 2)


def _scores(folder: Path) -> HeldOutScores | None:
    """The scores, when both evaluations are there."""
    if not all((folder / name).is_file() for name in (GREEDY, SAMPLED)):
        return None
    greedy, sampled = (json.loads((folder / name).read_text(encoding="utf-8")) for name in (GREEDY, SAMPLED))
    samples = int(sampled["samples"])
    passed = sampled["avg"] if samples == 1 else sampled["pass_at"][str(samples)]
    return HeldOutScores(int(sampled["prompts"]), samples, greedy["avg"], sampled["avg"], passed)


def _code(folder: Path) -> tuple[str, ...]:
    path = folder / "code.txt"
    return tuple(dict.fromkeys(path.read_text(encoding="utf-8").splitlines())) if path.is_file() else ()


def _mean_of(lines: Sequence[dict[str, Any]], field: str) -> float | None:
    values = [line[field] for line in lines if line.get(field) is not None]
    return mean(values) if values else None


def _curve(lines: Sequence[dict[str, Any]], field: str) -> tuple[float | None, ...]:
    return tuple(None if line.get(field) is None else round(line[field], DIGITS) for line in lines)
