"""One function per panel: draws one quantity of a run over its steps into given axes, labelled with its unit."""

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from megatron_entropic.observability.run_data import Array, RunData, smooth, smoothing_window
from megatron_entropic.observability.style import BLUE, GREEN, GREY, INK, MUTED, ORANGE, PURPLE, YELLOW, power_of_ten, step_axis
from megatron_entropic.observability.summary import time_parts

Panel = Callable[[Axes, RunData], None]
TARGET_BAND = 0.05
"""Half-width of the band around the target, as a share of it."""


def draw_entropy(ax: Axes, run: RunData) -> None:
    """Entropy (raw and smoothed) against the target and a band around it."""
    ax.set_title("Entropy")
    ax.set_ylabel("entropy (nats)")
    target = run.target_entropy
    if np.isfinite(target).any():
        width = TARGET_BAND * np.abs(target)
        ax.fill_between(run.steps, target - width, target + width, color=MUTED, alpha=0.13, lw=0, label=f"target ±{TARGET_BAND:.0%}")
        ax.plot(run.steps, target, color=INK, ls=(0, (2, 2)), lw=1.4, label="target", zorder=3)
    draw_curve(ax, run.steps, run.column("policy/entropy"), BLUE, "entropy")
    _finish(ax, run, smoothed=True)
    widen(ax, 0.3 * float(np.nanmax(np.abs(run.column("policy/entropy")), initial=0.0)))


def draw_clamped_entropy(ax: Axes, run: RunData) -> None:
    """AEnt's clamped entropy against the range in which it leaves its coefficient alone."""
    ax.set_title("Clamped entropy")
    ax.set_ylabel("clamped entropy (nats)")
    low, high = run.setting("control", "entropy_low"), run.setting("control", "entropy_high")
    if low is not None and high is not None:
        ax.axhspan(low, high, color=MUTED, alpha=0.13, lw=0, label=f"range {low:g} to {high:g}")
    draw_curve(ax, run.steps, run.column("policy/clamped_entropy"), BLUE, "clamped entropy")
    _finish(ax, run, smoothed=True)


def draw_alpha(ax: Axes, run: RunData) -> None:
    """EntroPIC's alpha between its limits."""
    ax.set_title("Control coefficient α")
    ax.set_ylabel("α")
    limit = run.setting("control", "alpha_limit")
    if limit is not None:
        for sign in (-1, 1):
            ax.axhline(sign * limit, color=ORANGE, ls=(0, (5, 2)), lw=1.4, label=f"limit ±{limit:g}" if sign > 0 else None)
        ax.set_ylim(-1.15 * limit, 1.15 * limit)
    ax.axhline(0, color=MUTED, lw=0.8)
    ax.plot(run.steps, run.column("control/alpha"), color=BLUE, **_marker(run.steps))
    _finish(ax, run)


def draw_coefficient(ax: Axes, run: RunData) -> None:
    """AEnt's bonus coefficient."""
    ax.set_title("Entropy-bonus coefficient")
    ax.set_ylabel("coefficient")
    ax.plot(run.steps, run.column("control/coefficient"), color=BLUE, **_marker(run.steps))
    ax.set_ylim(bottom=0)
    ax.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    _finish(ax, run)


def draw_reward(ax: Axes, run: RunData) -> None:
    """Mean reward, and the shares of prompts of which all or none of the rollouts are right."""
    ax.set_title("Reward")
    ax.set_ylabel("reward, share of prompts")
    draw_curve(ax, run.steps, run.column("reward/mean"), BLUE, "mean reward")
    draw_curve(ax, run.steps, run.column("reward/solve_all"), GREEN, "all solved", ls=(0, (6, 2)), lw=1.6)
    draw_curve(ax, run.steps, run.column("reward/solve_none"), ORANGE, "none solved", ls=(0, (2, 1.5)), lw=1.6)
    low, high = ax.get_ylim()
    ax.set_ylim(min(low, -0.03), max(high, 1.03))
    _finish(ax, run, smoothed=True)


def draw_length(ax: Axes, run: RunData) -> None:
    """Mean response length."""
    ax.set_title("Response length")
    ax.set_ylabel("mean length (tokens)")
    draw_curve(ax, run.steps, run.column("response/length_mean"), BLUE, "mean length")
    _finish(ax, run, legend=False, smoothed=True)
    widen(ax, 0.25 * float(np.nanmax(run.column("response/length_mean"), initial=0.0)))


def draw_gap(ax: Axes, run: RunData) -> None:
    """Largest difference between trainer and sampler log-probs, on a log scale."""
    ax.set_title("Log-prob gap, trainer − sampler")
    ax.set_ylabel("largest gap (nats)")
    gap = run.column("rollout/logprob_gap")
    limit = run.setting("rollout", "max_logprob_gap", 0.0)
    if (gap > 0).any():
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(power_of_ten)
        ax.plot(run.steps, np.where(gap > 0, gap, np.nan), color=BLUE, lw=2.0 if len(gap) < 100 else 1.2, **_marker(run.steps))
        if limit:
            ax.axhline(limit, color=ORANGE, ls=(0, (5, 2)), lw=1.4, label="the run stops here")
        low, high = ax.get_ylim()
        ax.set_ylim(min(low, 10 ** np.floor(np.log10(low))), max(high, 10 ** np.ceil(np.log10(high))))
    else:
        ax.plot(run.steps, gap, color=BLUE, **_marker(run.steps))
        ax.text(0.5, 0.6, "exactly 0 in every step", transform=ax.transAxes, ha="center", color=MUTED)
    _finish(ax, run)


def draw_times(ax: Axes, run: RunData) -> None:
    """Time of each step, stacked by what it went to."""
    ax.set_title("Time per step")
    ax.set_ylabel("time (s)")
    edges = np.append(run.steps - 0.5, run.steps[-1] + 0.5)
    base = np.zeros(len(run.steps))
    for (part, seconds), colour in zip(time_parts(run).items(), (BLUE, YELLOW, GREEN, GREY), strict=True):
        ax.stairs(base + seconds, edges, baseline=base, fill=True, color=colour, lw=0, label=part)
        base = base + seconds
    ax.set_ylim(0, 1.05 * _robust_top(base))
    if base.max() > 1.05 * _robust_top(base):
        slowest = int(run.steps[int(base.argmax())])
        _note(ax, f"cut off: step {slowest} took {base.max():.3g} s")
    _finish(ax, run, columns=4)


def draw_grad_norm(ax: Axes, run: RunData) -> None:
    """Global gradient norm before clipping, and the norm it is clipped to."""
    ax.set_title("Gradient norm")
    ax.set_ylabel("norm before clipping")
    draw_curve(ax, run.steps, run.column("grad_norm"), PURPLE, "gradient norm")
    clip = run.setting("optimizer", "clip_grad", 0.0)
    if clip and clip <= 3 * float(np.nanmax(run.column("grad_norm"), initial=0.0)):
        ax.axhline(clip, color=ORANGE, ls=(0, (5, 2)), lw=1.4, label=f"clipped to {clip:g}")
    ax.set_ylim(bottom=0)
    _finish(ax, run, smoothed=True)


def draw_curve(ax: Axes, x: Array, y: Array, colour: str, label: str, *, ls: Any = "-", lw: float = 2.0, smoothed: bool = True) -> None:
    """A metric: raw and faint below its moving mean; raw alone when the run is too short, or not to be smoothed."""
    if smoothed and smoothing_window(len(y)) > 1:
        ax.plot(x, y, color=colour, lw=1.0, alpha=0.3)
        y = smooth(y)
    ax.plot(x, y, color=colour, lw=lw, ls=ls, label=label, **_marker(x))


def legend_above(ax: Axes, columns: int) -> None:
    """A legend between title and axes, where it can hide nothing."""
    spacing = {"borderaxespad": 0.2, "borderpad": 0.1, "handlelength": 2.2, "handletextpad": 0.6, "columnspacing": 1.0}
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=columns, **spacing)


def widen(ax: Axes, span: float) -> None:
    """Makes the y axis cover at least `span`, so that noise of a flat curve does not fill the panel."""
    low, high = ax.get_ylim()
    missing = span - (high - low)
    if missing > 0:
        ax.set_ylim(low - missing / 2, high + missing / 2)


def _note(ax: Axes, text: str) -> None:
    """A remark in the title's row, at its right."""
    ax.set_title(text, loc="right", fontsize=9, fontweight="normal", color=MUTED)


def _marker(x: Array) -> dict[str, Any]:
    """Dots where steps are few: a line through one point is invisible."""
    return {} if len(x) >= 12 else {"marker": "o", "ms": 4}


def _robust_top(totals: Array) -> float:
    """The tallest step, unless the tallest is an outlier (a first step that compiles, a step that waited)."""
    typical = float(np.quantile(totals, 0.9)) if len(totals) else 0.0
    top = float(totals.max(initial=0.0))
    return (top if top <= 2 * typical else 1.25 * typical) or 1.0


def _finish(ax: Axes, run: RunData, *, legend: bool = True, columns: int = 3, smoothed: bool = False) -> None:
    step_axis(ax, run.steps[0], run.steps[-1])
    window = smoothing_window(len(run.steps))
    if smoothed and window > 1:
        _note(ax, f"bold: {window}-step mean; faint: each step")
    if legend and ax.get_legend_handles_labels()[0]:
        legend_above(ax, columns)
