"""warnings.jsonl: what a run warned of, each kind once, for whoever looks at it later. One JSON object a line, appended."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

FILE = "warnings.jsonl"


@dataclass(frozen=True)
class RunWarning:
    """`kind` is a word; `step` counts from 0, as in metrics.jsonl; `message` is one line that says what to do."""

    kind: str
    step: int
    message: str


def read_warnings(run_dir: str | os.PathLike[str]) -> list[RunWarning]:
    """The warnings in their order. A line torn by a crash is left out."""
    path = Path(run_dir) / FILE
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            found.append(RunWarning(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return found


def append_warning(run_dir: str | os.PathLike[str], warning: RunWarning) -> None:
    """Adds a line to the run's warnings."""
    with (Path(run_dir) / FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(warning)) + "\n")
