"""The findings of one part of the smoke test, as the part's own process gathers them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STEP = "» "
"""Begins the lines of a part's output that are shown while it runs."""

Value = float | str


@dataclass
class Findings:
    """Rows of numbers, what could not be tried and why, and what went wrong. A part goes on after a failed check.

    What a part writes to the folder `kept` stays beside its log; folders for temporary files are removed after it.
    """

    kept: Path = Path()
    rows: list[tuple[str, Mapping[str, Value]]] = field(default_factory=list)
    untried: list[tuple[str, str]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def step(self, text: str) -> None:
        """Says what is being done, on the terminal of whoever waits."""
        print(f"{STEP}{text}", flush=True)

    def found(self, what: str, **values: Value) -> None:
        """A row of the part's table; underscores in the names of its values are read as spaces."""
        self.rows.append((what, {name.replace("_", " "): _plain(value) for name, value in values.items()}))
        print(row_text(*self.rows[-1]), flush=True)

    def expect(self, holds: bool, otherwise: str) -> None:
        """A check; `otherwise` is the failure's one line."""
        if not holds:
            self.failures.append(otherwise)
            print(f"FAILED: {otherwise}", flush=True)

    def at_most(self, what: str, value: float, limit: float) -> None:
        """A check that `value` is a number up to `limit`."""
        self.expect(value <= limit, f"{what}: {value:.3g}, at most {limit:.3g} is allowed")

    def cannot(self, what: str, why: str) -> None:
        """Something that is not tried here."""
        self.untried.append((what, why))

    def as_json(self) -> dict[str, Any]:
        """For the runner, which reads it."""
        return {"rows": self.rows, "untried": self.untried, "failures": self.failures}


def row_text(what: str, values: Mapping[str, Value]) -> str:
    """A row in one line."""
    numbers = ", ".join(f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items())
    return f"{what}: {numbers}"


def _plain(value: Value) -> Value:
    """`value` as JSON knows it: NaN and infinities as words."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
