"""Progress of the real-model lab: a line an update, with the time that is left of the run and of all."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from recipes.lab.real_model_runs import Plan, RealRun

AROUND_S = 240.0
"""Starting servers, exporting and scoring: about what a run takes beside its updates."""
RECENT = 20
"""Updates whose median is the time of the next ones: the first is slower."""


def steps_done(folder: Path) -> int:
    """Whole lines in the run's metrics.jsonl."""
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def last_lines(folder: Path, count: int) -> list[dict[str, Any]]:
    """The last whole lines of the run's metrics.jsonl, which may be written to meanwhile."""
    path = folder / "metrics.jsonl"
    whole = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    return [json.loads(line) for line in whole[-count:]]


class Progress:
    """Says what the runs `waiting` do. `tick` is called often while one trains."""

    def __init__(self, plan: Plan, waiting: Sequence[RealRun], out: Path) -> None:
        self._plan = plan
        self._waiting = list(waiting)
        self._out = out
        self._run: RealRun | None = None
        self._shown = 0
        self._began = time.monotonic()
        self._seconds = [line["time/step_s"] for run in plan.runs for line in last_lines(out / run.name, RECENT)][-RECENT:]

    def announce(self, chosen: int) -> None:
        """Prints the plan."""
        known = f", about {self._left()}" if self._seconds else ""
        say(f"{chosen - len(self._waiting)} of {chosen} runs are done; {len(self._waiting)} to do{known}")

    def begin(self, run: RealRun) -> None:
        """`run` begins, or resumes."""
        self._run, self._shown = run, steps_done(self._out / run.name)
        self._began = time.monotonic()
        say(f"{run.name}: {f'resumes after about {self._shown} updates' if self._shown else 'begins'}; see {self._out / run.name}.out")

    def tick(self) -> None:
        """Shows the run's new updates. A resumed run first takes back what came after its checkpoint."""
        assert self._run is not None
        folder = self._out / self._run.name
        done = steps_done(folder)
        if done <= self._shown:
            self._shown = done
            return
        for line in last_lines(folder, done - self._shown):
            self._seconds = [*self._seconds, line["time/step_s"]][-RECENT:]
            self._shown = line["step"] + 1
            say(f"{self._run.name}  {self._line(line)}")

    def scoring(self, name: str) -> None:
        """The trained policy is being scored."""
        assert self._run is not None
        say(f"{self._run.name}  scoring on {self._plan.problems} held-out sums: {name}")

    def end(self, run: RealRun, code: int) -> None:
        """`run` ended."""
        self._waiting.remove(run)
        how = "done" if code == 0 else f"FAILED with exit code {code}, see the end of {self._out / run.name}.out"
        say(f"{run.name}: {how}, after {duration(time.monotonic() - self._began)}; {len(self._waiting)} runs to go")

    def _line(self, line: dict[str, Any]) -> str:
        shown = [f"{self._shown}/{self._plan.updates}", f"entropy {line['policy/entropy']:.3f}"]
        for label, field, form in (("target", "control/target_entropy", ".3f"), ("alpha", "control/alpha", "+.3f")):
            shown += [f"{label} {line[field]:{form}}"] if line.get(field) is not None else []
        seconds = median(self._seconds)
        run_left = duration(seconds * (self._plan.updates - self._shown))
        return "  ".join(
            [*shown, f"reward {line['reward/mean']:.3f}", f"{line['time/step_s']:.0f} s", f"{run_left} left, all {self._left()}"]
        )

    def _left(self) -> str:
        """The time that all waiting runs take."""
        updates = sum(max(0, self._plan.updates - steps_done(self._out / run.name)) for run in self._waiting if run.trained)
        return duration(updates * median(self._seconds) + AROUND_S * len(self._waiting))


def duration(seconds: float) -> str:
    """Such as `6 h 05 min`, `12 min`, `40 s`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min" if minutes else f"{rest} s"


def say(text: str) -> None:
    """A line with the time of day: the lab runs for hours."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)
