"""Watches runs until they are over: a picture that is drawn again and again on a terminal, a line a step anywhere else."""

import io
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from megatron_entropic.observability.dashboard.watched_run import OVER, WatchedRun

_SHOWN = (  # label, metric, its text
    ("target", "control/target_entropy", "{:.3f}"),
    ("alpha", "control/alpha", "{:+.3f}"),
    ("reward", "reward/mean", "{:.3f}"),
    ("gap", "rollout/logprob_gap", "{:.1e}"),
    ("tokens/s", "perf/tokens_per_s", "{:,.0f}"),
)


def watch(paths: Sequence[Path], *, every: float, once: bool = False) -> None:
    """Shows the runs in `paths`, which need not have begun, every so many seconds until all are over; or `once`."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks the characters of the curves shows others
    runs = [WatchedRun(path) for path in paths]
    if sys.stdout.isatty():
        _draw(runs, every, once=once)
    else:
        _print_lines(runs, every, once=once)


def _draw(runs: Sequence[WatchedRun], every: float, *, once: bool) -> None:
    from rich.console import Console
    from rich.live import Live

    from megatron_entropic.observability.dashboard.picture import picture

    console = Console()
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            for run in runs:
                run.poll()
            live.update(picture(runs, console.width), refresh=True)
            if once or all(run.status in OVER for run in runs):
                return
            time.sleep(every)


def _print_lines(runs: Sequence[WatchedRun], every: float, *, once: bool) -> None:
    """A line when a run stands otherwise, one for each new step, one for each new warning; of what was before, the latest step."""
    seen = [_Printed() for _ in runs]
    while True:
        for run, before in zip(runs, seen, strict=True):
            run.poll()
            for line in before.news(run):
                print(f"{run.name}: {line}", flush=True)
        if once or all(run.status in OVER for run in runs):
            return
        time.sleep(every)


class _Printed:
    """What was printed of a run."""

    def __init__(self) -> None:
        self.status: str | None = None
        self.step = -1
        self.warnings = 0

    def news(self, run: WatchedRun) -> list[str]:
        first = self.status is None
        done = [line for line in run.metrics if line["step"] > self.step]
        lines = [_step_line(run, line) for line in (done[-1:] if first else done)]
        if run.done and run.done - 1 < self.step:  # resumed from before
            lines.append(f"goes on after step {run.done}")
        lines += [f"warned at step {warning.step + 1}: {warning.message}" for warning in run.warnings[self.warnings :]]
        if run.status != self.status:
            lines.append(f"{run.status}{f': {run.error}' if run.error else ''}, {run.done} of {run.planned or '?'} steps done")
        self.status, self.step, self.warnings = run.status, run.done - 1, len(run.warnings)
        return lines


def _step_line(run: WatchedRun, line: dict[str, object]) -> str:
    parts = [f"step {int(str(line['step'])) + 1}{f'/{run.planned}' if run.planned else ''}"]
    for label, name, text in (("entropy", run.steered_field, "{:.3f}"), *_SHOWN):
        value = line.get(name)
        if isinstance(value, int | float):
            parts.append(f"{label} {text.format(value)}")
    if (left := run.seconds_left) is not None:
        from megatron_entropic.observability.pages import format_duration

        parts.append(f"{format_duration(left)} left")
    return "  ".join(parts)
