"""Runs of parts of the smoke test, by the command that a user types."""

import subprocess
import sys

from megatron_entropic.doctor.smoke.findings import Findings
from megatron_entropic.observability.metrics import read_metrics

_STEPS = 3
_SHORT = (
    "parallel.tensor=1",
    "rollout.servers=1",
    f"trainer.steps={_STEPS}",
    "trainer.report=false",
    "trainer.tensorboard=false",
    "trainer.export_hf=false",
    "checkpoint.every=0",
)


def train(*arguments: str) -> None:
    """`megatron-entropic train ARGUMENTS`. Raises RuntimeError when it fails."""
    command = [sys.executable, "-m", "megatron_entropic.cli", "train", *arguments]
    if code := subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode:
        raise RuntimeError(f"train {' '.join(arguments)} ended with exit code {code}")


def train_with_server(findings: Findings, what: str, *settings: str) -> None:
    """Three steps of the quickstart on one rank with one server; its folder stays, with the server's log. Raises RuntimeError."""
    findings.step(what)
    run_dir = findings.kept / "train"
    train("quickstart", f"run.dir={run_dir}", *_SHORT, *settings)
    lines = read_metrics(run_dir / "metrics.jsonl")
    findings.expect(len(lines) == _STEPS, f"{what}: {len(lines)} steps of {_STEPS} in metrics.jsonl")
    findings.found(
        what,
        steps=str(len(lines)),
        gap_max=max(float(line["rollout/logprob_gap"]) for line in lines),
        last_step_s=float(lines[-1]["time/step_s"]),
        last_sync_s=float(lines[-1]["time/sync_s"]),
    )
