"""The lab's pictures: entropy at different targets, and what the controller did for it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from megatron_entropic.observability.plotting.style import GREY, INK, SERIES, styled
from recipes.lab.cases import METHODS
from recipes.lab.run import Result

SHOWN = ("released", "alpha_only", "handoff")
"""Methods with a column of their own; GRPO is in all of them for comparison."""

Curves = Mapping[tuple[str, float | None], Sequence[Result]]


def draw_curves(path: Path, title: str, results: Curves) -> None:
    """Entropy (upper row) and alpha (lower row) of the steered methods at each target, mean and range over the seeds."""
    with styled():
        figure, axes = plt.subplots(2, len(SHOWN), figsize=(13, 6.4), sharex=True, sharey="row", layout="constrained")
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
        targets = sorted({target for _, target in results if target is not None})
        for (upper, lower), method in zip(axes.T, SHOWN, strict=True):
            upper.set_title(METHODS[method].title, pad=8)
            if ("grpo", None) in results:
                _draw(upper, results["grpo", None], "policy/entropy", GREY, "GRPO")
            for target, colour in zip(targets, SERIES, strict=False):
                if seeds := results.get((method, target)):
                    _draw(upper, seeds, "policy/entropy", colour, f"target {target:g} x start")
                    _draw(lower, seeds, "control/alpha", colour, None)
                    upper.axhline(float(np.mean([seed.target for seed in seeds])), color=colour, linestyle=":", linewidth=1)
            lower.axhline(0.0, color=INK, linewidth=0.6)
            lower.set_xlabel("step")
        axes[0, 0].set_ylabel("entropy (nats)")
        axes[1, 0].set_ylabel("alpha")
        handles, labels = axes[0, -1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
        figure.savefig(path, dpi=110)
        plt.close(figure)


def _draw(axes: Axes, seeds: Sequence[Result], name: str, colour: str, label: str | None) -> None:
    curves = np.array([[np.nan if value is None else value for value in seed.series[name]] for seed in seeds], dtype=float)
    steps = np.arange(curves.shape[1])
    axes.plot(steps, curves.mean(axis=0), color=colour, linewidth=1.6, label=label)
    axes.fill_between(steps, curves.min(axis=0), curves.max(axis=0), color=colour, alpha=0.18, linewidth=0)
