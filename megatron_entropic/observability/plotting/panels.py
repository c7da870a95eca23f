"""One function per panel: draws one quantity of a run over its steps into given axes, labelled with its unit.

The panels of entropy control are in control_panels.py.
"""

from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes

from megatron_entropic.observability.plotting.style import (
    BLUE,
    BUCKETS,
    GREEN,
    GREY,
    MUTED,
    ORANGE,
    PURPLE,
    YELLOW,
    draw_curve,
    finish,
    marker,
    note,
    robust_top,
    whole_decades,
    widen,
)
from megatron_entropic.observability.run_data import RunData
from megatron_entropic.observability.summary import time_parts
from megatron_entropic.observability.thinning import kept

Panel = Callable[[Axes, RunData], None]


def draw_reward(ax: Axes, run: RunData) -> None:
    """Mean reward, and the fractions of prompts of which all or none of the rollouts are right."""
    ax.set_title("Reward")
    ax.set_ylabel("reward, fraction of prompts")
    draw_curve(ax, run.steps, run.column("reward/mean"), BLUE, "mean reward")
    draw_curve(ax, run.steps, run.column("reward/solve_all"), GREEN, "all solved", ls=(0, (6, 2)), lw=1.6)
    draw_curve(ax, run.steps, run.column("reward/solve_none"), ORANGE, "none solved", ls=(0, (2, 1.5)), lw=1.6)
    low, high = ax.get_ylim()
    ax.set_ylim(min(low, -0.03), max(high, 1.03))
    finish(ax, run, smoothed=True)


def draw_length(ax: Axes, run: RunData) -> None:
    """Mean response length."""
    ax.set_title("Response length")
    ax.set_ylabel("mean length (tokens)")
    draw_curve(ax, run.steps, run.column("response/length_mean"), BLUE, "mean length")
    finish(ax, run, legend=False, smoothed=True)
    widen(ax, 0.25 * float(np.nanmax(run.column("response/length_mean"), initial=0.0)))


def draw_gap(ax: Axes, run: RunData) -> None:
    """Largest difference between trainer and sampler log-probs, on a log scale."""
    ax.set_title("Log-prob gap, trainer − sampler")
    ax.set_ylabel("largest gap (nats)")
    gap = run.column("rollout/logprob_gap")
    limit = run.setting("rollout", "max_logprob_gap", "auto")
    if (gap > 0).any():
        ax.plot(run.steps, np.where(gap > 0, gap, np.nan), color=BLUE, lw=2.0 if len(gap) < 100 else 1.2, **marker(run.steps))
        if limit and limit != "auto":
            ax.axhline(limit, color=ORANGE, ls=(0, (5, 2)), lw=1.4, label="the run stops here")
        whole_decades(ax)
    else:
        ax.plot(run.steps, gap, color=BLUE, **marker(run.steps))
        ax.text(0.5, 0.6, "exactly 0 in every step", transform=ax.transAxes, ha="center", color=MUTED)
    finish(ax, run)


def draw_times(ax: Axes, run: RunData) -> None:
    """Time of each step, stacked by what it went to."""
    ax.set_title("Time per step")
    ax.set_ylabel("time (s)")
    parts = time_parts(run)
    base = np.add.reduce(list(parts.values()))
    shown = kept(base, BUCKETS // 2)  # of a long run the fastest and the slowest step of each stretch
    edges = np.append(run.steps[shown] - 0.5, run.steps[-1] + 0.5)
    below = np.zeros(len(shown))
    colours = {"rollout": BLUE, "update": YELLOW, "sync": GREEN, "validation": PURPLE, "other": GREY}
    for part, seconds in parts.items():
        ax.stairs(below + seconds[shown], edges, baseline=below, fill=True, color=colours[part], lw=0, label=part)
        below = below + seconds[shown]
    ax.set_ylim(0, 1.05 * robust_top(base))
    if base.max() > 1.05 * robust_top(base):
        slowest = int(run.steps[int(base.argmax())])
        note(ax, f"cut off: step {slowest} took {base.max():.3g} s")
    finish(ax, run, columns=len(parts))


def draw_grad_norm(ax: Axes, run: RunData) -> None:
    """Global gradient norm before clipping, and the norm it is clipped to."""
    ax.set_title("Gradient norm")
    ax.set_ylabel("norm before clipping")
    draw_curve(ax, run.steps, run.column("grad_norm"), PURPLE, "gradient norm")
    clip = run.setting("optimizer", "clip_grad", 0.0)
    if clip and clip <= 3 * float(np.nanmax(run.column("grad_norm"), initial=0.0)):
        ax.axhline(clip, color=ORANGE, ls=(0, (5, 2)), lw=1.4, label=f"clipped to {clip:g}")
    ax.set_ylim(bottom=0)
    finish(ax, run, smoothed=True)
