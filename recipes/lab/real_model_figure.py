"""The picture of the real-model lab: entropy against its target, alpha and reward of every run, a column for each target."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from megatron_entropic.observability.plotting.style import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, YELLOW, styled
from recipes.lab.real_model_numbers import Numbers
from recipes.lab.settling import SETTLED, WINDOW, moving_mean

COLOURS = (BLUE, ORANGE, GREEN, PURPLE, YELLOW)
"""Of a column's runs, in their order."""
ROWS = ("entropy (nats)", "alpha", f"reward, {WINDOW}-update mean")


def draw(path: Path, title: str, runs: Sequence[Numbers]) -> None:
    """Draws the runs that have trained at all; one without a target, such as GRPO, is in every column, in grey."""
    factors: list[float | None] = [*sorted({run.factor for run in runs if run.factor is not None}, reverse=True)] or [None]
    with styled():
        figure, axes = plt.subplots(
            3, len(factors), figsize=(4.4 * len(factors), 8.4), sharex=True, sharey="row", squeeze=False, layout="constrained"
        )
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
        for column, factor in zip(axes.T, factors, strict=True):
            shown = [run for run in runs if run.factor == factor and factor is not None]
            column[0].set_title("no target" if factor is None else f"target {factor:g} x the start", pad=8)
            for run in (run for run in runs if run.factor is None):
                _draw(column, run, GREY)
            for run, colour in zip(shown, COLOURS, strict=False):
                _draw(column, run, colour)
                assert run.target is not None
                column[0].axhline(run.target, color=colour, linestyle=":", linewidth=1)
                column[0].axhspan(run.target * (1 - SETTLED), run.target * (1 + SETTLED), color=colour, alpha=0.06, linewidth=0)
            column[1].axhline(0.0, color=INK, linewidth=0.6)
            column[0].legend(fontsize=8, loc="best")
            column[2].set_xlabel("update")
        for axis, label in zip(axes[:, 0], ROWS, strict=True):
            axis.set_ylabel(label)
        figure.savefig(path, dpi=110)
        plt.close(figure)


def _draw(column: Sequence[Axes], run: Numbers, colour: str) -> None:
    updates = np.arange(1, run.updates + 1)
    entropy = np.array([np.nan if value is None else value for value in run.entropy], dtype=float)
    alpha = np.array([np.nan if value is None else value for value in run.alpha], dtype=float)
    label = run.name if run.updates >= run.planned else f"{run.name} ({run.updates} of {run.planned})"
    column[0].plot(updates, entropy, color=colour, linewidth=0.8, alpha=0.5)
    column[0].plot(updates, moving_mean(entropy.tolist()), color=colour, linewidth=1.8, label=label)
    column[1].plot(updates, alpha, color=colour, linewidth=1.4)
    column[2].plot(updates, moving_mean([value or 0.0 for value in run.rewards]), color=colour, linewidth=1.6)
