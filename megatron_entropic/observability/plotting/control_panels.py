"""The panels of entropy control: is the target held, who steers, and what does the controller know of the policy's response."""

import itertools

import numpy as np
from matplotlib.axes import Axes

from megatron_entropic.config.control import KINDS, settings_read_by
from megatron_entropic.control.handoff import Phase
from megatron_entropic.observability.plotting.style import (
    BLUE,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    SKY,
    YELLOW,
    draw_band,
    draw_curve,
    finish,
    legend_above,
    marker,
    note,
    whole_decades,
    widen,
)
from megatron_entropic.observability.run_data import Array, RunData

TARGET_BAND = 0.05
"""Half-width of the band around the target, as a fraction of it."""
PHASES = {
    Phase.PROBING: ("probing", YELLOW),
    Phase.ALPHA: ("alpha", BLUE),
    Phase.SHARED: ("alpha + bonus", SKY),
    Phase.BONUS: ("bonus", GREEN),
    Phase.EXHAUSTED: ("out of reach", ORANGE),
}
"""Name and colour of each phase in the band; before anything is measured (IDLE) the band is empty."""


def draw_entropy(ax: Axes, run: RunData) -> None:
    """Entropy (raw and smoothed) against target, setpoint and a band around the target, and what the controller takes it to be."""
    ax.set_title("Entropy")
    ax.set_ylabel("entropy (nats)")
    if run.steered_field == "policy/entropy":
        _draw_target(ax, run)
        _draw_level(ax, run)
    draw_curve(ax, run.steps, run.column("policy/entropy"), BLUE, "entropy")
    finish(ax, run, smoothed=True)
    widen(ax, 0.3 * float(np.nanmax(np.abs(run.column("policy/entropy")), initial=0.0)))


def draw_clamped_entropy(ax: Axes, run: RunData) -> None:
    """Clamped entropy against what it is steered to: a target, or the range in which AEnt leaves its coefficient alone."""
    ax.set_title("Clamped entropy")
    ax.set_ylabel("clamped entropy (nats)")
    low, high = run.setting("control", "entropy_low"), run.setting("control", "entropy_high")
    if run.steered_field == "policy/clamped_entropy":
        _draw_target(ax, run)
        _draw_level(ax, run)
    ranged = run.control_kind in KINDS and "entropy_low" in settings_read_by(run.control_kind)
    if ranged and low is not None and high is not None:
        ax.axhspan(low, high, color=MUTED, alpha=0.13, lw=0, label=f"range {low:g} to {high:g}")
    draw_curve(ax, run.steps, run.column("policy/clamped_entropy"), BLUE, "clamped entropy")
    finish(ax, run, smoothed=True)


def draw_alpha(ax: Axes, run: RunData) -> None:
    """EntroPIC's alpha between its limits, under the band of who steers."""
    ax.set_title("Control coefficient α")
    ax.set_ylabel("α")
    limit = run.setting("control", "alpha_limit")
    if limit is not None:
        for sign in (-1, 1):
            ax.axhline(sign * limit, color=ORANGE, ls=(0, (5, 2)), lw=1.4, label=f"limit ±{limit:g}" if sign > 0 else None)
        ax.set_ylim(-1.15 * limit, 1.15 * limit)
    ax.axhline(0, color=MUTED, lw=0.8)
    ax.plot(run.steps, run.column("control/alpha"), color=BLUE, **marker(run.steps))
    _finish_with_phases(ax, run)


def draw_coefficient(ax: Axes, run: RunData) -> None:
    """The bonus coefficient, under the band of who steers."""
    ax.set_title("Entropy-bonus coefficient")
    ax.set_ylabel("coefficient")
    coefficient = run.column("control/coefficient")
    ax.plot(run.steps, coefficient, color=BLUE, **marker(run.steps))
    ax.set_ylim(0, 1.15 * float(np.nanmax(coefficient, initial=0.0)) or 1.0)
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")  # matplotlib's own writes a power of ten over the legend
    _finish_with_phases(ax, run)


def draw_response(ax: Axes, run: RunData) -> None:
    """Measured entropy, and the prediction of the controller's plant model."""
    ax.set_title("Response: predicted, observed")
    ax.set_ylabel("entropy (nats)")
    measured, predicted = run.column("control/measured_entropy"), run.column("control/predicted_entropy")
    ax.plot(run.steps, measured, color=BLUE, label="observed", **marker(run.steps))
    ax.plot(run.steps, predicted, color=ORANGE, ls=(0, (6, 2)), lw=1.6, label="predicted", **marker(run.steps))
    surprise = (measured - predicted)[np.isfinite(measured - predicted)]
    note(ax, f"rms difference {np.sqrt(np.mean(surprise**2)):.2g} nats" if len(surprise) else "")
    finish(ax, run)
    widen(ax, 0.1 * float(np.nanmax(np.abs(measured), initial=0.0)))


def draw_plant(ax: Axes, run: RunData) -> None:
    """The estimated gain and drift of the entropy, each with its standard error."""
    ax.set_title("Estimated response of the entropy")
    ax.set_ylabel("nats per update")
    ax.axhline(0, color=MUTED, lw=0.8)
    edges = []
    for name, label, colour, dash in (
        ("plant_gain", "gain, per unit of α", BLUE, "-"),
        ("plant_drift", "drift, at α = 0", ORANGE, (0, (6, 2))),
    ):
        value, error = run.column(f"control/{name}"), run.column(f"control/{name}_error")
        draw_band(ax, run.steps, value - error, value + error, colour, alpha=0.15)
        ax.plot(run.steps, value, color=colour, ls=dash, label=label, **marker(run.steps))
        edges += [value - error, value + error]
    _zoom(ax, np.concatenate(edges))
    note(ax, "band: ±1 standard error")
    finish(ax, run)


def draw_gains(ax: Axes, run: RunData) -> None:
    """The gains of the PI controller on a log scale, and where they were tuned."""
    ax.set_title("Controller gains")
    ax.set_ylabel("1/nat, 1/(nat·update)")
    for name, colour, dash in (("kp", BLUE, "-"), ("ki", ORANGE, (0, (6, 2)))):
        gain = run.column(f"control/{name}")
        ax.plot(
            run.steps, np.where(gain > 0, gain, np.nan), color=colour, ls=dash, drawstyle="steps-mid", label=name, **marker(run.steps)
        )
    whole_decades(ax)
    tuned = run.tuned_from
    if tuned is not None:
        ax.axvline(tuned - 0.5, color=INK, ls=(0, (2, 2)), lw=1.2, label=f"tuned from step {tuned}")
    finish(ax, run)


def draw_authority(ax: Axes, run: RunData) -> None:
    """Fraction of the tokens that have an advantage, and the fraction of alpha that is applied because of it."""
    ax.set_title("Authority of α")
    ax.set_ylabel("fraction")
    draw_curve(ax, run.steps, run.column("control/active_fraction"), BLUE, "tokens with an advantage")
    draw_curve(ax, run.steps, run.column("control/trust"), GREEN, "trust in α", ls=(0, (6, 2)), lw=1.6, smoothed=False)
    ax.set_ylim(-0.03, 1.03)
    finish(ax, run, smoothed=True)


def _draw_level(ax: Axes, run: RunData) -> None:
    """The controller's estimate of the entropy, which averages over noisy measurements, with two standard errors."""
    if run.has("control/level"):
        level, error = run.column("control/level"), 2 * run.column("control/level_error")
        draw_band(ax, run.steps, level - error, level + error, GREEN, alpha=0.18, label="estimate ±2 s.e.")


def _draw_target(ax: Axes, run: RunData) -> None:
    target = run.target_entropy
    if not np.isfinite(target).any():
        return
    width = TARGET_BAND * np.abs(target)
    draw_band(ax, run.steps, target - width, target + width, MUTED, alpha=0.13, label=f"target ±{TARGET_BAND:.0%}")
    ax.plot(run.steps, target, color=INK, ls=(0, (2, 2)), lw=1.4, label="target", zorder=3)
    setpoint = run.column("control/setpoint")
    if np.nanmax(np.abs(setpoint - target), initial=0.0) > 0:
        ax.plot(run.steps, setpoint, color=GREEN, lw=1.4, label="setpoint", zorder=3)


def _finish_with_phases(ax: Axes, run: RunData) -> None:
    """Ends a panel with a band along its top that says who steered in each step; without phases just ends it."""
    finish(ax, run)
    handles = {}
    for phase, group in itertools.groupby(zip(run.steps, run.phases, strict=True), key=lambda item: item[1]):
        steps = [step for step, _ in group]
        if phase in PHASES:
            name, colour = PHASES[phase]
            handles[name] = ax.axvspan(steps[0] - 0.5, steps[-1] + 0.5, ymin=0.955, color=colour, lw=0)
    if handles:
        named = {name: handles[name] for name, _ in PHASES.values() if name in handles}
        legend_above(ax, len(named), named)
        note(ax, "band: who steers")


def _zoom(ax: Axes, values: Array) -> None:
    """Shows what most of the steps show: nothing is known at the start, and the bands there are wide."""
    finite = values[np.isfinite(values)]
    if len(finite):
        low, high = min(0.0, np.quantile(finite, 0.1)), max(0.0, np.quantile(finite, 0.9))
        margin = 0.25 * (high - low) or 1e-3
        ax.set_ylim(low - margin, high + margin)
