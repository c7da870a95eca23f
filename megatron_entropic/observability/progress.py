"""Progress on the terminal: a bar on a terminal, one plain line a step everywhere else (SLURM logs, CI)."""

import sys
from collections.abc import Callable, Mapping
from typing import TextIO

from tqdm import tqdm

from megatron_entropic.control.handoff import Phase
from megatron_entropic.observability.metrics import MetricValue


def _unless_alpha(phase: float) -> str:
    """The phase's name; nothing while alpha alone steers."""
    return "" if phase == Phase.ALPHA.number else str(list(Phase)[int(phase)])


_SHOWN: tuple[tuple[str, str, Callable[[float], str]], ...] = (  # label, field, its text; an empty one is left out
    ("entropy", "policy/entropy", "{:.3f}".format),
    ("target", "control/target_entropy", "{:.3f}".format),
    ("alpha", "control/alpha", "{:+.3f}".format),
    ("coef", "control/coefficient", lambda coefficient: f"{coefficient:.1e}" if coefficient else ""),
    ("phase", "control/phase", _unless_alpha),
    ("reward", "reward/mean", "{:.3f}".format),
)


def _validated(metrics: Mapping[str, MetricValue]) -> list[tuple[str, str]]:
    """The mean score of each validation set, with its interval; nothing in steps that were not validated."""
    shown = []
    for name, value in metrics.items():
        if name.startswith("validation/") and name.endswith("/avg") and value is not None:
            low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
            interval = f" ({low:.3f} to {high:.3f})" if low is not None and high is not None else ""
            shown.append((name.split("/")[1], f"{value:.3f}{interval}"))
    return shown


class ProgressBar:
    """A Tracker that shows entropy, target, alpha and reward of each step on stderr, who steers when it is not alpha alone, and
    scores of validation.

    Silent on ranks other than 0. `total` is trainer.steps, `first_step` the step a resumed run starts with. `stream` is for tests.
    """

    def __init__(self, total: int, *, first_step: int = 0, rank: int = 0, stream: TextIO | None = None) -> None:
        self._total = total
        self._stream = sys.stderr if stream is None else stream
        self._silent = rank != 0
        self._bar: tqdm[int] | None = None
        if not self._silent and self._stream.isatty():
            self._bar = tqdm(total=total, initial=first_step, unit="step", file=self._stream, dynamic_ncols=True)

    def log(self, step: int, metrics: Mapping[str, MetricValue]) -> None:
        """Shows `step` as done."""
        if self._silent:
            return
        try:
            self._show(step, metrics)
        except OSError:  # the terminal was closed, or the reader of a pipe ended: the run continues
            self._silent = True

    def _show(self, step: int, metrics: Mapping[str, MetricValue]) -> None:
        values = [(label, metrics.get(field), text) for label, field, text in _SHOWN]
        texts = [(label, text(value)) for label, value, text in values if value is not None]
        shown = {label: text for label, text in [*texts, *_validated(metrics)] if text}
        if self._bar is not None:
            self._bar.set_postfix(shown, refresh=False)
            self._bar.update(step + 1 - self._bar.n)
            return
        seconds = metrics.get("time/step_s")
        parts = [f"step {step + 1}/{self._total}", *(f"{label} {value}" for label, value in shown.items())]
        parts += [f"{seconds:.1f} s"] if seconds is not None else []
        print("  ".join(parts), file=self._stream, flush=True)

    def close(self) -> None:
        """Leaves the bar as it stands; safe to call twice."""
        if self._bar is not None and not self._silent:
            self._bar.close()
