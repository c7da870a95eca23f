"""comparison.html: several runs in one page, with the settings in which they differ. The runs' own reports stay as they are."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from markupsafe import Markup

from megatron_entropic.config import Config
from megatron_entropic.config.loading import to_dict
from megatron_entropic.observability.explorer import make_explorer
from megatron_entropic.observability.pages import format_number, render_page
from megatron_entropic.observability.plotting.plots import draw_comparison, save_png
from megatron_entropic.observability.plotting.style import themed_svg
from megatron_entropic.observability.run_data import RunData, load_run
from megatron_entropic.observability.summary import Summary, summarise_run
from megatron_entropic.system.atomic_files import write_atomically

PAGE = "comparison.html"
MOST_CURVES = 12
"""Runs in one picture; of more, the page's chart shows those that one chooses."""
LONGEST_VALUE = 60
"""Characters of a setting in the table."""
_VALIDATION = ("avg", "pass", "majority", "greedy")
"""Metrics validation/SET/... of which the last value is a column."""


@dataclass(frozen=True)
class ComparedRun:
    """A run in the table."""

    summary: Summary
    settings: list[str]
    """Those in which the runs differ, in the order of the table's columns."""
    validation: list[str]
    report: str | None
    """Address of its report, from the page's folder; None where there is none."""


def write_comparison(run_dir: str | os.PathLike[str], others: Sequence[str | os.PathLike[str]]) -> Path:
    """Writes run_dir/comparison.html and run_dir/plots/compare.png about this run and `others`; returns the page's path.

    Raises as load_run; ValueError when a run has no steps.
    """
    paths = [Path(run_dir), *map(Path, others)]
    runs = {label: load_run(path) for label, path in _labelled(paths).items()}
    if empty := [f"{label} ({run.path})" for label, run in runs.items() if not run.metrics]:
        raise ValueError(f"nothing to compare: no step was logged in {', '.join(empty)}")
    return _write(runs, paths[0], title=next(iter(runs)))


def write_overview(paths: Sequence[str | os.PathLike[str]]) -> Path:
    """Writes comparison.html and plots/compare.png about the runs `paths`, into the folder that holds them all; returns the page.

    Runs without a step are in its table alone. Raises as load_run; ValueError when none has a step.
    """
    runs = {label: load_run(path) for label, path in _labelled([Path(path) for path in paths]).items()}
    if not any(run.metrics for run in runs.values()):
        raise ValueError(f"nothing to compare: no step was logged in any of {len(runs)} runs")
    folder = Path(os.path.commonpath([Path(path).resolve().parent for path in paths]))
    return _write(runs, folder, title=folder.name)


def runs_in(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """(the run folders among `paths` and directly in those that are none, such as a sweep's; what is neither), each once."""
    found: dict[Path, None] = {}
    neither = []
    for path in paths:
        inside = sorted(path.glob("*/config.yaml")) if path.is_dir() else []
        runs = [path] if (path / "config.yaml").is_file() else [config.parent for config in inside]
        found |= dict.fromkeys(runs)
        neither += [] if runs else [path]
    return list(found), neither


def _write(runs: Mapping[str, RunData], folder: Path, *, title: str) -> Path:
    begun = {label: run for label, run in runs.items() if run.metrics}
    picture = Markup("")
    if len(begun) <= MOST_CURVES:
        drawn = draw_comparison({label: run.path for label, run in begun.items()})
        save_png(drawn, folder / "plots" / "compare.png")
        picture = Markup(themed_svg(drawn, "compare"))
    names, tables = differing_settings(list(runs.values()))
    validated = _validated(list(runs.values()))
    rows = {
        label: ComparedRun(summarise_run(run), table, [_last(run, field) for field in validated], _report_of(run.path, folder))
        for (label, run), table in zip(runs.items(), tables, strict=True)
    }
    page = render_page(
        "comparison.html.j2",
        name=title,
        comparison=picture,
        rows=rows,
        settings=names,
        validated=[field.removeprefix("validation/") for field in validated],
        explorer=make_explorer(begun),
    )
    return write_atomically(folder / PAGE, page.encode())


def differing_settings(runs: Sequence[RunData]) -> tuple[list[str], list[list[str]]]:
    """(names of the settings in which the runs differ, their values for each run); one that a run does not know has its default."""
    defaults = to_dict(Config())
    flat = [_flat({**defaults, **{name: {**defaults.get(name, {}), **fields} for name, fields in run.config.items()}}) for run in runs]
    names = [name for name in dict.fromkeys(name for settings in flat for name in settings) if not name.startswith("run.")]
    differing = [name for name in names if len({settings.get(name, "–") for settings in flat}) > 1]
    return differing, [[settings.get(name, "–") for name in differing] for settings in flat]


def _flat(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Values by dotted name; options of tasks and of control one by one."""
    flat: dict[str, str] = {}
    for section, fields in sections.items():
        for field, value in fields.items():
            inside = value if isinstance(value, dict) else {}
            flat |= {f"{section}.{field}.{option}": _shown(each) for option, each in inside.items()}
            flat |= {} if isinstance(value, dict) else {f"{section}.{field}": _shown(value)}
    return flat


def _shown(value: object) -> str:
    text = "–" if value is None else str(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 1]}…"


def _validated(runs: Sequence[RunData]) -> list[str]:
    names = {name for run in runs for line in run.metrics for name in line if name.startswith("validation/")}
    return sorted(name for name in names if name.endswith(_VALIDATION))


def _last(run: RunData, field: str) -> str:
    """The last value of a metric that not every step has."""
    values = run.column(field)
    known = values[np.isfinite(values)]
    return format_number(float(known[-1]) if len(known) else None, ".3f")


def _report_of(run_dir: Path, folder: Path) -> str | None:
    report = run_dir.resolve() / "report.html"
    return quote(os.path.relpath(report, folder.resolve())) if report.is_file() else None


def _labelled(paths: Sequence[Path]) -> dict[str, Path]:
    """The runs by their folders' names; where two share one, by as much of their paths as tells all apart."""
    folders = [path.resolve() for path in paths]
    names = [folder.name for folder in folders]
    if len(set(names)) < len(set(folders)):
        above = os.path.commonpath([folder.parent for folder in folders])
        names = [str(folder.relative_to(above)) for folder in folders]
    # matplotlib leaves what begins with _ out of its legends
    return {f"./{name}" if name.startswith("_") else name: path for name, path in zip(names, paths, strict=True)}
