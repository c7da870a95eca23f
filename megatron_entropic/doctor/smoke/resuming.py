"""Part `resume`: a run of five steps, and a copy of it that a new process resumes from its third. The last two must be the same.

Both take the fourth step from the same weights: on a GPU two runs from the start would differ by then, as they sample.
"""

import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

from megatron_entropic.doctor.smoke.findings import Findings
from megatron_entropic.doctor.smoke.short_run import train
from megatron_entropic.observability.metrics import read_metrics

SAVED_AT, STEPS = 3, 5
_SETTINGS = (
    "parallel.tensor=1",
    "rollout.engine=local",
    "batch.prompts_per_step=8",
    "batch.samples_per_prompt=4",
    "trainer.report=false",
    "trainer.tensorboard=false",
    "trainer.export_hf=false",
    "trainer.deterministic=true",
    f"checkpoint.every={SAVED_AT}",
)
_TIMES = ("time/", "perf/")
_ON_A_GPU = 2e-2
"""Difference of a metric on a GPU, absolute up to 1 and relative beyond; what is shown says whether it was the same bits."""


def run(findings: Findings) -> None:
    """Each run is the command that a user types."""
    whole, parts = (Path(tempfile.mkdtemp()) / name for name in ("whole", "parts"))
    findings.step(f"a run of {STEPS} steps that saves after {SAVED_AT}")
    train("quickstart", f"run.dir={whole}", f"trainer.steps={STEPS}", *_SETTINGS)
    _copy_as_saved(whole, parts)
    findings.step(f"resuming after step {SAVED_AT} in a new process")
    train(str(parts), "--resume")
    expected, resumed = metrics_of(whole), metrics_of(parts)
    findings.expect(len(resumed) == len(expected) == STEPS, f"steps done: {len(expected)} in one run, {len(resumed)} in two")
    differences = differing(expected[SAVED_AT:], resumed[SAVED_AT:])
    worst = max(differences.values(), default=0.0)
    findings.found(
        "two resumed steps against two uninterrupted ones",
        metrics=str(len(expected[-1])),
        that_differ=str(len(differences)),
        largest_difference=worst,
    )
    from megatron_entropic.platform import accelerated  # Megatron-Core comes with it: seconds, in which the runs could have begun

    if accelerated():
        first = differing(expected[SAVED_AT : SAVED_AT + 1], resumed[SAVED_AT : SAVED_AT + 1])
        findings.at_most("the first resumed step's metrics", max(first.values(), default=0.0), _ON_A_GPU)
    else:
        findings.expect(not differences, f"metrics that differ after resuming: {', '.join(differences)}")


def _copy_as_saved(whole: Path, parts: Path) -> None:
    """A copy of the run as a kill after its first checkpoint leaves it: later checkpoints are not there."""
    shutil.copytree(whole, parts)
    checkpoints, kept = parts / "checkpoints", f"step-{SAVED_AT:06d}"
    for folder in checkpoints.glob("step-*"):
        if folder.name != kept:
            shutil.rmtree(folder)
    (checkpoints / "latest").write_text(f"{kept}\n")


def metrics_of(run_dir: Path) -> list[dict[str, Any]]:
    """The run's metrics, a dictionary a step, without times."""
    lines = read_metrics(run_dir / "metrics.jsonl")
    return [{name: value for name, value in line.items() if not name.startswith(_TIMES)} for line in lines]


def differing(expected: list[dict[str, Any]], actual: list[dict[str, Any]]) -> dict[str, float]:
    """By metric, its largest difference, absolute up to 1 and relative beyond; infinite where only one is a number."""
    found: dict[str, float] = {}
    for before, after in zip(expected, actual, strict=False):
        for name in before.keys() | after.keys():
            a, b = before.get(name), after.get(name)
            if a == b:
                continue
            both = isinstance(a, int | float) and isinstance(b, int | float)
            difference = abs(a - b) / max(abs(a), 1.0) if both else math.inf  # type: ignore[operator, arg-type]
            found[name] = max(found.get(name, 0.0), difference)
    return found
