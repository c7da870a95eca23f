"""The pictures of a run (PNG files under plots/) and the comparison of several runs."""

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from megatron_entropic.observability.plotting import control_panels, panels
from megatron_entropic.observability.plotting.panels import Panel
from megatron_entropic.observability.plotting.style import (
    DASHES,
    INK,
    MUTED,
    SERIES,
    draw_curve,
    legend_above,
    marker,
    step_axis,
    styled,
    widen,
)
from megatron_entropic.observability.plotting.validation_panel import validation_panels
from megatron_entropic.observability.run_data import RunData, load_run
from megatron_entropic.system.atomic_files import write_atomically

T = TypeVar("T")

PANEL_SIZE = (8.0, 4.0)
"""Inches of a picture with one panel; at the 200 dpi of the PNG files 1600 x 800 pixels, sharp when shown at 800."""

CONTROL_DETAILS: dict[str, tuple[str, Panel]] = {
    "response": ("control/predicted_entropy", control_panels.draw_response),
    "plant": ("control/plant_gain_error", control_panels.draw_plant),
    "gains": ("control/kp", control_panels.draw_gains),
    "authority": ("control/trust", control_panels.draw_authority),
}
"""Panels of the controller's internals, by name: the metric a run must have, and the panel. Not part of the overview."""


def write_plots(run_dir: str | os.PathLike[str]) -> dict[str, Path]:
    """Writes every picture of the run to run_dir/plots and returns name -> PNG file.

    Names: entropy, reward, response_length, logprob_gap, times, grad_norm, overview; clamped_entropy, alpha, coefficient, a
    validation_NAME for each set, and those of CONTROL_DETAILS where the run has them. Raises as load_run, and ValueError for a run
    without a single step.
    """
    run = load_run(run_dir)
    return {name: save_png(figure, run.path / "plots" / f"{name}.png") for name, figure in draw_run(run).items()}


def draw_run(run: RunData, panel_size: tuple[float, float] = PANEL_SIZE) -> dict[str, Figure]:
    """The figures of write_plots, not saved. Raises ValueError for a run without a single step."""
    if not run.metrics:
        raise ValueError(f"{run.path}: nothing to plot, no step was logged yet")
    with styled():
        figures = {name: _draw_single(panel, run, panel_size) for name, panel in panels_of(run).items()}
        figures["overview"] = _draw_overview(run)
    return figures


def panels_of(run: RunData) -> dict[str, Panel]:
    """The panels that have something to show for this run, those of CONTROL_DETAILS last."""
    chosen: dict[str, Panel] = {"entropy": control_panels.draw_entropy}
    controlled = run.control_kind != "none"
    if controlled and run.has("policy/clamped_entropy"):
        chosen["clamped_entropy"] = control_panels.draw_clamped_entropy
    if controlled and run.has("control/alpha"):
        chosen["alpha"] = control_panels.draw_alpha
    if controlled and np.nan_to_num(run.column("control/coefficient")).any():
        chosen["coefficient"] = control_panels.draw_coefficient
    chosen |= {
        "reward": panels.draw_reward,
        "response_length": panels.draw_length,
        "logprob_gap": panels.draw_gap,
        "times": panels.draw_times,
        "grad_norm": panels.draw_grad_norm,
        **validation_panels(run),
    }
    if controlled:
        chosen |= {name: panel for name, (field, panel) in CONTROL_DETAILS.items() if run.has(field)}
    if run.tuned_from is None:
        chosen.pop("gains", None)
    return chosen


def compare_entropy(runs: Mapping[str, str | os.PathLike[str]], out: str | os.PathLike[str]) -> Path:
    """One PNG at `out` with the entropy, alpha and reward of several runs (label -> run folder) and the target line.

    Raises as load_run, and ValueError when there is no run or one has not logged a step.
    """
    return save_png(draw_comparison(runs), Path(out))


def draw_comparison(runs: Mapping[str, str | os.PathLike[str]]) -> Figure:
    """The figure of compare_entropy, not saved."""
    loaded = {label: load_run(path) for label, path in runs.items()}
    empty = [f"{label} ({run.path})" for label, run in loaded.items() if not run.metrics]
    if not loaded or empty:
        raise ValueError(f"nothing to compare: {'no step was logged in ' + ', '.join(empty) if empty else 'no runs given'}")
    with styled():
        figure = Figure(figsize=(9.0, 7.2), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
        grid = figure.add_gridspec(2, 2, height_ratios=(1.35, 1))
        entropy_ax, alpha_ax, reward_ax = (figure.add_subplot(cell) for cell in (grid[0, :], grid[1, 0], grid[1, 1]))
        _compare(entropy_ax, loaded, "policy/entropy", "Entropy", "entropy (nats)")
        _compare(alpha_ax, loaded, "control/alpha", "Control coefficient α", "α")
        _compare(reward_ax, loaded, "reward/mean", "Mean reward", "mean reward")
        _draw_targets(entropy_ax, loaded)
        legend_above(entropy_ax, columns=4)
        alpha_ax.axhline(0, color=MUTED, lw=0.8)
        widen(alpha_ax, 0.2)
        _tighten_titles(alpha_ax, reward_ax)
    return figure


def save_png(figure: Figure, path: Path) -> Path:
    """Saves the figure atomically, making the folder when missing."""
    buffer = io.BytesIO()
    with styled():
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return write_atomically(path, buffer.getvalue())


def _draw_single(panel: Panel, run: RunData, size: tuple[float, float]) -> Figure:
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1))
    panel(figure.add_subplot(), run)
    return figure


def _draw_overview(run: RunData) -> Figure:
    apart = {*CONTROL_DETAILS, *validation_panels(run)}
    chosen = {name: panel for name, panel in panels_of(run).items() if name not in apart}
    if len(chosen) % 2:  # rows of two: gradient norms fill the last row or are left to their own picture
        del chosen["grad_norm"]
    rows = len(chosen) // 2
    figure = Figure(figsize=(10.0, 3.2 * rows), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1))
    for number, (ax, panel) in enumerate(zip(figure.subplots(rows, 2, squeeze=False).flat, chosen.values(), strict=True)):
        panel(ax, run)
        if number < len(chosen) - 2:
            ax.set_xlabel("")
    return figure


def _compare(ax: Axes, runs: Mapping[str, RunData], field: str, title: str, unit: str) -> None:
    for (label, run), colour, dash in zip(runs.items(), _cycle(SERIES, len(runs)), _cycle(DASHES, len(runs)), strict=True):
        if run.has(field) and not (field.startswith("control/") and run.control_kind == "none"):
            draw_curve(ax, run.steps, run.column(field), colour, label, ls=dash, smoothed=not field.startswith("control/"))
    ax.set_title(title)
    ax.set_ylabel(unit)
    if not ax.lines:
        ax.text(0.5, 0.5, "none of these runs has it", transform=ax.transAxes, ha="center", color=MUTED)
    step_axis(ax, min(run.steps[0] for run in runs.values()), max(run.steps[-1] for run in runs.values()))


def _draw_targets(ax: Axes, runs: Mapping[str, RunData]) -> None:
    """The target of each controlled run in its run's colour; one line in the colour of the text when they share it."""
    coloured = zip(runs.values(), _cycle(SERIES, len(runs)), strict=True)
    targets = [(run.steps, run.target_entropy, colour) for run, colour in coloured if np.isfinite(run.target_entropy).any()]
    if not targets:
        return
    constants = {float(value) for _, target, _ in targets for value in target[np.isfinite(target)]}
    if len(constants) == 1:
        ax.axhline(constants.pop(), color=INK, ls=(0, (2, 2)), lw=1.3, label="target")
        return
    for steps, target, colour in targets:
        ax.plot(steps, target, color=colour, ls=(0, (2, 2)), lw=1.3, **marker(steps))
    ax.plot([], [], color=INK, ls=(0, (2, 2)), lw=1.3, label="targets")


def _tighten_titles(*axes: Axes) -> None:
    """Titles of panels without a legend sit close to the axes."""
    for ax in axes:
        ax.set_title(ax.get_title(loc="left"), pad=8)


def _cycle(items: Sequence[T], count: int) -> list[T]:
    return [items[number % len(items)] for number in range(count)]
