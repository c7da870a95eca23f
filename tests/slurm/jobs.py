"""Submits the project's sbatch files to an emulated cluster, as a user does."""

import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.command_line import ROOT
from tests.slurm.cluster import Cluster

STEPS = 16
REAL_RUN = (
    "quickstart",
    "--ranks-per-node=2",
    "parallel.tensor=2",
    "parallel.data=2",
    "rollout.servers=1",
    f"trainer.steps={STEPS}",
    "batch.prompts_per_step=8",
    "batch.samples_per_prompt=4",
    "control.probe_updates=4",
    "trainer.tensorboard=false",
)
"""Two nodes of two ranks train; one node serves."""


@dataclass
class Job:
    """A submitted job."""

    cluster: Cluster
    job_id: str
    folder: Path

    @property
    def output(self) -> str:
        """All that the job's output files hold."""
        return "\n".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("job-*.out")))

    @property
    def state(self) -> str:
        return self.cluster.job(self.job_id)["JobState"]

    @property
    def restarts(self) -> int:
        return int(self.cluster.job(self.job_id)["Restarts"])

    def wait(self, timeout: float) -> "Job":
        """Returns once the job is in a state that it never leaves, and its output is complete."""
        try:
            self.cluster.wait_for_job(self.job_id, timeout=timeout)
        except RuntimeError as error:
            raise AssertionError(f"{error}\n{self.output}") from error
        time.sleep(0.3)
        return self

    def wait_until(self, condition: Callable[[], bool], timeout: float) -> None:
        """Returns once `condition` holds; fails with the output when the job ends first, or takes too long."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert self.state in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING"), self.output
            assert time.monotonic() < deadline, f"not within {timeout} s:\n{self.output}\n{self.cluster.describe()}"
            time.sleep(0.2)


def job(cluster: Cluster, folder: Path, script: str, *arguments: str, **environ: str) -> Job:
    """Submits slurm/SCRIPT with output in `folder`. Arguments before the first that does not begin with -- are sbatch's."""
    folder.mkdir(parents=True, exist_ok=True)
    split = next((place for place, word in enumerate(arguments) if not word.startswith("--") and word != ":"), len(arguments))
    command = [
        "sbatch",
        "--parsable",
        f"--output={folder}/job-%j.out",
        *arguments[:split],
        str(ROOT / "slurm" / script),
        *arguments[split:],
    ]
    variables = {"ENTROPIC_ROOT": str(ROOT), "ENTROPIC_PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=folder, env={**cluster.environ, **variables, **environ}, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    return Job(cluster, re.match(r"\d+", done.stdout)[0], folder)  # type: ignore[index]


def lines_of(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def processes_of(folder: Path) -> list[str]:
    """Command lines of living processes, on any node, that name `folder`."""
    found = []
    for process in psutil.process_iter():
        try:
            words = " ".join(process.cmdline())
            if str(folder) in words and process.status() != psutil.STATUS_ZOMBIE and process.pid != psutil.Process().pid:
                found.append(words)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found
