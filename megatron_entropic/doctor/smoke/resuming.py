"""Part `resume`: a run of five steps, and one of three that a new process resumes. Their last two steps must be the same."""

import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from megatron_entropic.doctor.smoke.findings import Findings
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
)
_TIMES = ("time/", "perf/")
_ON_A_GPU = 2e-2
"""Difference of a metric on a GPU, absolute up to 1 and relative beyond: backward passes of attention add in any order there."""


def run(findings: Findings) -> None:
    """The two runs begin side by side; each is the command that a user types."""
    folder = Path(tempfile.mkdtemp())
    findings.step(f"a run of {STEPS} steps, and one of {SAVED_AT}")
    whole = _train("quickstart", f"run.dir={folder / 'whole'}", f"trainer.steps={STEPS}", *_SETTINGS)
    parts = _train("quickstart", f"run.dir={folder / 'parts'}", f"trainer.steps={SAVED_AT}", *_SETTINGS)
    _wait(parts, whole)
    findings.step("resuming the second in a new process")
    _wait(_train(str(folder / "parts"), "--resume", f"trainer.steps={STEPS}"))
    expected, resumed = (metrics_of(folder / name) for name in ("whole", "parts"))
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
        findings.cannot("equality bit for bit", "on a GPU sums are added in any order")
        first = differing(expected[SAVED_AT : SAVED_AT + 1], resumed[SAVED_AT : SAVED_AT + 1])
        findings.at_most("the first resumed step's metrics", max(first.values(), default=0.0), _ON_A_GPU)
    else:
        findings.expect(not differences, f"metrics that differ after resuming: {', '.join(differences)}")


def _train(*arguments: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "megatron_entropic.cli", "train", *arguments]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL)


def _wait(*runs: "subprocess.Popen[bytes]") -> None:
    codes = [run.wait() for run in runs]
    if any(codes):
        raise RuntimeError(f"`train` ended with exit code {max(codes, key=abs)}")


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
