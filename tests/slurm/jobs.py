"""Submits the project's sbatch files to an emulated cluster, as a user does."""

import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.command_line import ROOT
from tests.slurm.cluster import Cluster

STEPS = 16
UNDER_WAY = ("PENDING", "REQUEUED", "CONFIGURING", "RUNNING", "SIGNALING", "COMPLETING")
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
    "trainer.report=false",
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

    def processes(self) -> list[psutil.Process]:
        """The job's living processes, on any node, found by what SLURM put into their environment; never another's."""
        found = []
        for process in psutil.process_iter():
            try:
                environ = process.environ() if process.status() != psutil.STATUS_ZOMBIE else {}
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            mine = environ.get("SLURM_CONF") == self.cluster.environ["SLURM_CONF"] and environ.get("SLURM_JOB_ID") == self.job_id
            if mine and "SLURM_STEP_ID" in environ:
                found.append(process)
        return found

    def kill(self, *words: str) -> None:
        """SIGKILL to the job's process whose command line has all these words, once it is there."""
        self.wait_until(lambda: bool(self._with(words)), 90)
        self._with(words)[0].kill()

    def _with(self, words: Sequence[str]) -> list[psutil.Process]:
        lines = [(process, process.cmdline()) for process in self.processes()]
        return [process for process, line in lines if all(any(word in part for part in line) for word in words)]

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
            assert (state := self.state) in UNDER_WAY, f"{state}:\n{self.output}"
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
    variables = {"ENTROPIC_PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}  # the script finds the checkout itself
    done = subprocess.run(
        command, cwd=folder, env={**cluster.environ, **variables, **environ}, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    return Job(cluster, re.match(r"\d+", done.stdout)[0], folder)  # type: ignore[index]


def lines_of(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0
