"""The dashboard as rich draws it: one panel a run, beside each other as far as they fit."""

from collections.abc import Sequence

from rich.columns import Columns
from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from megatron_entropic.observability.dashboard.plots import POINT, TARGET, rows_with_target, sparkline
from megatron_entropic.observability.dashboard.watched_run import FAILED, FINISHED, KILLED, NOT_STARTED, RUNNING, WatchedRun
from megatron_entropic.observability.pages import format_duration
from megatron_entropic.observability.report_samples import escaped

NARROWEST = 39
"""Columns that a run's panel needs: two stand beside each other in 80."""
PLOT_ROWS = 5
WARNINGS = 2
_COLOURS = {RUNNING: "cyan", FINISHED: "green", FAILED: "red", KILLED: "red", NOT_STARTED: "dim"}
_ROWS = (  # label, metric, its text
    ("alpha", "control/alpha", "{:+.3f}"),
    ("bonus", "control/coefficient", "{:.2e}"),
    ("reward", "reward/mean", "{:.3f}"),
    ("length", "response/length_mean", "{:.1f}"),
    ("gap", "rollout/logprob_gap", "{:.1e}"),
    ("tokens/s", "perf/tokens_per_s", "{:,.0f}"),
)


def picture(runs: Sequence[WatchedRun], width: int) -> Columns:
    """All runs, on a terminal of `width` columns."""
    beside = max(1, min(len(runs), width // NARROWEST))
    each = width // beside
    return Columns([_panel(run, each) for run in runs], width=each, padding=(0, 0))


def progress_line(run: WatchedRun) -> str:
    """Steps done and the time still needed."""
    planned = f" of {run.planned}" if run.planned is not None else ""
    left = run.seconds_left
    return f"step {run.done}{planned}" + (f", {format_duration(left)} left" if left is not None else "")


def _panel(run: WatchedRun, width: int) -> Panel:
    inside = width - 4
    parts: list[Text | Table] = [Text(progress_line(run), no_wrap=True, overflow="ellipsis"), _bar(run, inside)]
    if run.metrics:
        parts += [_entropy(run, inside), _rows(run, inside)]
    elif run.status == NOT_STARTED:
        parts.append(Text(f"waiting for a run in {escaped(str(run.path))}", style="dim"))
    else:
        parts.append(Text("waiting for the first step", style="dim"))
    if run.error:
        parts.append(Text(run.error, style="red"))
    parts += [Text(f"step {warning.step + 1}: {escaped(warning.message)}", style="yellow") for warning in run.warnings[-WARNINGS:]]
    title = Text(run.name, style="bold") + Text(f"  {run.status}", style=_COLOURS.get(run.status, "yellow"))
    title.truncate(inside - 2, overflow="ellipsis")
    return Panel(Group(*parts), title=title, title_align="left", width=width, border_style="dim")


def _bar(run: WatchedRun, width: int) -> Text:
    filled = round(width * min(1.0, run.done / run.planned)) if run.planned else 0
    return Text("━" * filled, style="cyan") + Text("━" * (width - filled), style="dim")


def _entropy(run: WatchedRun, width: int) -> Table:
    """The entropy that is steered by, over the steps, with its target."""
    entropy, targets = run.column(run.steered_field), run.column("control/target_entropy")
    now, target = run.latest(run.steered_field), run.latest("control/target_entropy")
    head = Text(run.steered_field.removeprefix("policy/").replace("_", " "), style="bold")
    head.append(f" {now:.3f}" if now is not None else " –", style="cyan")
    head.append(f"  {TARGET}target {target:.3f}" if target is not None else "", style="green")
    table = Table.grid()
    table.add_row(head)
    for row in rows_with_target(entropy, targets, width, PLOT_ROWS):
        line = Text(row)
        line.highlight_regex(f"{POINT}+", "cyan")
        line.highlight_regex(f"{TARGET}+", "green")
        table.add_row(line)
    return table


def _rows(run: WatchedRun, width: int) -> Table:
    table = Table.grid(padding=(0, 1))
    for label, metric, text in _ROWS:
        value = run.latest(metric)
        if value is not None:
            line = sparkline(run.column(metric), width - 20)
            table.add_row(Text(label, style="dim"), Text(text.format(value), justify="right"), Text(line, style="blue", no_wrap=True))
    return table
