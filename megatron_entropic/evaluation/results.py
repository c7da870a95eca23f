"""Scores on sets of problems as files, as a table, and found again for a comparison."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_entropic.evaluation.set_scores import SetScores, set_scores_from
from megatron_entropic.system.atomic_files import write_atomically

FORMAT = "megatron_entropic evaluation 1"
RESULTS = "evaluation_sets.json"
"""Of a run's folder: what `evaluate RUN --sets` wrote last."""
_STEP = re.compile(r"step-(\d{6,})\.json")


@dataclass(frozen=True)
class Results:
    """Of one model, or policy of a step: its scores by set, and what is to be said about them."""

    model: str
    sets: tuple[SetScores, ...]
    remarks: tuple[str, ...] = ()

    def save(self, path: Path) -> None:
        """Writes them as JSON, problem by problem, atomically."""
        content = {"format": FORMAT, "model": self.model, "remarks": self.remarks, "sets": [each.to_json() for each in self.sets]}
        write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())

    def __str__(self) -> str:
        rows = [_row(each) for each in self.sets]
        return "\n".join([self.model, *(f"  {remark}" for remark in self.remarks), *_aligned([_HEAD, *rows])])


_HEAD = ("set", "problems", "samples", "avg (95% interval)", "pass@k", "majority", "greedy", "length", "truncated", "distinct")


def _row(scores: SetScores) -> tuple[str, ...]:
    value = scores.statistics
    return (
        scores.name,
        str(len(scores.problems)),
        f"{scores.samples} at T={scores.temperature:g}",
        f"{value['avg']:.3f} ({value['avg_low']:.3f} to {value['avg_high']:.3f})",
        f"{value['pass']:.3f} @{scores.pass_at}",
        f"{value['majority']:.3f}",
        f"{value['greedy']:.3f}" if "greedy" in value else "-",
        f"{value['length']:.1f}",
        f"{value['truncated']:.3f}",
        f"{value['distinct']:.3f}",
    )


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def results_at(path: Path) -> Results:
    """The results in a file; of a run's folder those of its last `evaluate --sets`, else of its last validation.

    Raises ValueError naming what is there instead.
    """
    if path.is_dir():
        return _of_file(path / RESULTS) if (path / RESULTS).is_file() else _of_run(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file or folder")
    return _of_file(path)


def _of_file(path: Path) -> Results:
    content = _json(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT or not isinstance(content.get("sets"), list):
        raise ValueError(f"{path}: not what `megatron-entropic evaluate --sets` writes (format {FORMAT!r})")
    sets = tuple(set_scores_from(each, f"{path}, set {number + 1}") for number, each in enumerate(content["sets"]))
    return Results(str(content.get("model", path)), sets)


def _of_run(run_dir: Path) -> Results:
    sets, steps = [], set()
    folders = sorted(path for path in (run_dir / "validation").glob("*") if path.is_dir())
    for folder in folders:
        by_step = {int(match[1]): path for path in folder.iterdir() if (match := _STEP.fullmatch(path.name))}
        if by_step:
            steps.add(last := max(by_step))
            sets.append(set_scores_from(_json(by_step[last]), str(by_step[last])))
    if not sets:
        raise ValueError(
            f"{run_dir}: holds no scores on sets: neither {RESULTS} nor validation/; name sets by --sets to evaluate it now"
        )
    return Results(f"{run_dir} after {' and '.join(map(str, sorted(steps)))} steps", tuple(sets))


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
