"""The lab's table and figures: DOCS/entropy_lab.md, DOCS/entropy_lab.json and DOCS/images/lab_*.png."""

import json
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

from megatron_entropic.system.atomic_files import write_atomically
from recipes.lab.cases import METHODS, SETTINGS, TASKS, Method, all_cases
from recipes.lab.figures import draw_curves
from recipes.lab.run import PROMPTS, Result, load_result
from recipes.lab.settling import SETTLED, WINDOW, mean, moving_mean, settled_from

HEADER = "| method | target | seeds | entropy | error (worst) | overshoot | settled | reward | greedy | avg@8 | pass@8 | distinct |"


@dataclass(frozen=True)
class TableLine:
    """One line of the table: means over the seeds. Errors and overshoot are fractions of the target; settling is a step."""

    task: str
    setting: str
    method: str
    target: float | None
    seeds: int
    entropy: float
    error: float | None
    worst_error: float | None
    overshoot: float | None
    settling: float | None
    reward: float
    greedy: float
    avg: float
    pass_at_8: float
    distinct: float


def write_lab_page(out: Path, docs: Path) -> Path:
    """Writes what is done so far; returns the page. Raises ValueError when nothing is."""
    results: dict[tuple[str, str, str, float | None], list[Result]] = {}
    for case in all_cases():
        result = load_result(out / case.name)
        if result is not None:
            results.setdefault((case.task, case.setting, case.method, case.target), []).append(result)
    if not results:
        raise ValueError(f"{out}: no case is done yet; run python -m recipes.lab first")
    rows = [summarise(*key, seeds) for key, seeds in results.items()]
    (docs / "images").mkdir(parents=True, exist_ok=True)
    pictures = []
    for task in TASKS:
        for setting in SETTINGS:
            shown = {key[2:]: seeds for key, seeds in results.items() if key[:2] == (task, setting)}
            if shown:
                path = docs / "images" / f"lab_{task}_{setting}.png"
                draw_curves(path, f"{task}, {_long(setting)}", shown)
                pictures.append(path)
    write_atomically(docs / "entropy_lab.json", (json.dumps([asdict(row) for row in rows], indent=1) + "\n").encode())
    return write_atomically(docs / "entropy_lab.md", _page(rows, pictures, docs).encode())


def summarise(task: str, setting: str, method: str, target: float | None, seeds: Sequence[Result]) -> TableLine:
    """The row of one method at one target."""
    halves = [mean(_entropy(result)[len(_entropy(result)) // 2 :]) for result in seeds]
    targets = [result.target for result in seeds if target is not None and result.target is not None]
    errors = [half / goal - 1 for half, goal in zip(halves, targets, strict=True)] if targets else []
    answers = [response(_entropy(result), goal) for result, goal in zip(seeds, targets, strict=True)] if targets else []
    settled = [settling for settling, _ in answers if settling is not None]
    overshoots = [overshoot for _, overshoot in answers]
    rewards = [[value or 0.0 for value in result.series["reward/mean"]] for result in seeds]
    return TableLine(
        task=task,
        setting=setting,
        method=method,
        target=target,
        seeds=len(seeds),
        entropy=mean(halves),
        error=mean(errors) if errors else None,
        worst_error=max(errors, key=abs) if errors else None,
        overshoot=mean(overshoots) if overshoots else None,
        settling=mean(settled) if answers and len(settled) == len(answers) else None,
        reward=mean([mean(series[-len(series) // 3 :]) for series in rewards]),
        greedy=mean([result.greedy for result in seeds]),
        avg=mean([result.avg for result in seeds]),
        pass_at_8=mean([result.pass_at_8 for result in seeds]),
        distinct=mean([result.distinct for result in seeds]),
    )


def response(entropy: Sequence[float], target: float) -> tuple[int | None, float]:
    """(step from which the moving average stays within SETTLED of the target, or None; overshoot as a fraction of the target).

    The overshoot is how far the moving average goes beyond the target, seen from the start, after it first reached it.
    """
    smooth = moving_mean(entropy)
    side = 1.0 if entropy[0] > target else -1.0
    beyond = [side * (1 - value / target) for value in smooth]
    return settled_from(smooth, target), max(0.0, *beyond)


def _entropy(result: Result) -> list[float]:
    return [math.nan if value is None else value for value in result.series["policy/entropy"]]


def _long(setting: str) -> str:
    return {"on": "on-policy", "off": "off-policy, 4 mini-batches"}[setting]


def _page(rows: Sequence[TableLine], pictures: Sequence[Path], docs: Path) -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("megatron-core", "torch"))
    lines = [
        "# The entropy-control lab",
        "",
        f"Made by `python -m recipes.lab` on {date.today().isoformat()}: {platform.machine()} CPU, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, {packages}. Tiny models (0.47 million parameters, fp32), the trainer's own Megatron "
        "stack, the local engine; 32 prompts x 8 samples a step, learning rate 2e-4; 120 steps on-policy, 50 steps of 4 updates "
        "off-policy. Targets are in multiples of the entropy before the first update.",
        "",
        "*error*: mean entropy of the last half of the steps against the target, mean over the seeds (and the worst seed). "
        f"*overshoot*: of the {WINDOW}-step mean beyond the target. *settled*: step from which that mean stays within "
        f"{100 * SETTLED:.0f}% of the target (- : not, in one seed at least). *reward*: mean of the last third. *greedy*, "
        f"*avg@8*, *pass@8*, *distinct* (different right answers among the right ones): the final policy on {PROMPTS} fresh "
        "prompts, avg@8, pass@8 and distinct at temperature 1.",
    ]
    for task in TASKS:
        for setting in SETTINGS:
            part = [row for row in rows if (row.task, row.setting) == (task, setting)]
            if not part:
                continue
            lines += ["", f"## {task}, {_long(setting)}", ""]
            lines += [f"![entropy and alpha]({path.relative_to(docs)})" for path in pictures if path.stem == f"lab_{task}_{setting}"]
            lines += ["", HEADER, "|---" * HEADER.count(" | ") + "|---|"]
            lines += [_line(METHODS[row.method], row) for row in sorted(part, key=lambda row: list(METHODS).index(row.method))]
    return "\n".join(lines) + "\n"


def _line(method: Method, row: TableLine) -> str:
    def share(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:+.1f}%"

    cells = [
        method.title,
        "-" if row.target is None else f"{row.target:g}",
        str(row.seeds),
        f"{row.entropy:.3f}",
        "-" if row.error is None else f"{share(row.error)} ({share(row.worst_error)})",
        "-" if row.overshoot is None else f"{100 * row.overshoot:.1f}%",
        "-" if row.settling is None else f"{row.settling:.0f}",
        *(f"{value:.3f}" for value in (row.reward, row.greedy, row.avg, row.pass_at_8, row.distinct)),
    ]
    return "| " + " | ".join(cells) + " |"
