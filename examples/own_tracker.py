"""A tracker of your own: each step's metrics go wherever you want, here into a table that a spreadsheet opens.

    megatron-entropic train quickstart 'trainer.trackers=[examples/own_tracker.py:Table]'

Several may be named. Rank 0 alone has trackers, and calls them once a step: what takes long belongs into a thread of the tracker.
"""

import csv
from collections.abc import Mapping
from pathlib import Path

COLUMNS = ("policy/entropy", "control/target_entropy", "control/alpha", "reward/mean", "perf/tokens_per_s")


class Table:
    """RUN_DIR/table.csv, one row a step, steps counted from 1."""

    def __init__(self, run_dir: Path, run_id: str | None, first_step: int) -> None:
        """`run_id`: what this tracker called the run, None for a new one; it is kept in checkpoints. `first_step`: what a resumed run
        starts with, so rows from there on, of a run that was killed, are dropped."""
        self.run_id = run_id or "table.csv"
        path = Path(run_dir) / self.run_id
        rows = list(csv.reader(path.open())) if path.exists() else []
        self.file = path.open("w", newline="")
        self.rows = csv.writer(self.file)
        self.rows.writerows(rows[: first_step + 1] or [["step", *COLUMNS]])

    def log(self, step: int, metrics: Mapping[str, float | int | None]) -> None:
        """The line of metrics.jsonl; None where a run has no such thing."""
        self.rows.writerow([step + 1, *(metrics.get(name) for name in COLUMNS)])
        self.file.flush()

    def close(self) -> None:
        """May be called twice."""
        self.file.close()
