"""One srun of the job: its command line, and its output line by line with the task that wrote it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from slurm.allocation import Group
from slurm.containers import Container

# What sbatch was told about tasks would be taken by srun for its own.
_OF_THE_JOB = (
    "SLURM_NTASKS",
    "SLURM_NPROCS",
    "SLURM_NTASKS_PER_NODE",
    "SLURM_TASKS_PER_NODE",
    "SLURM_CPUS_PER_TASK",
    "SLURM_DISTRIBUTION",
    # With these each task would see GPUs of its own only, and those left for the servers none. Without them all see the job's; with
    # --gpu-bind=none instead SLURM would not say which GPUs are the job's, and tasks might take another job's.
    "SLURM_GPUS_PER_TASK",
    "SLURM_TRES_PER_TASK",
    "SLURM_NTASKS_PER_GPU",
    "SLURM_GPU_BIND",
)
STOP_S = 30.0
_LABELLED = re.compile(r"^ *(\d+): ?(.*)$")
_EXITED = re.compile(r"^srun: error: (\S+): tasks? ([\d,-]+): Exited with exit code (\d+)")


class Listener(Protocol):
    """Takes a line of output and the task that wrote it; the task is None for srun's own words."""

    def __call__(self, task: int | None, line: str) -> None: ...


@dataclass
class StepRequest:
    """A job step to run: `tasks_per_node` tasks on each node of `groups` (several only for a het job's common steps)."""

    groups: Sequence[Group]
    tasks_per_node: int
    command: list[str]
    environ: Mapping[str, str] = field(default_factory=dict)
    kill_on_bad_exit: bool = True
    bind_cpus: bool = False
    """Each task gets an equal part of the node's cores for itself."""


class Step:
    """A running srun. `listener` gets every line of output in a thread of its own."""

    def __init__(self, request: StepRequest, container: Container, listener: Listener) -> None:
        self.exit_codes: dict[str, int] = {}
        """By node and tasks, the codes other than 0 that srun reported."""
        self.spoke = threading.Event()
        """Set once a task wrote a line. Before its tasks run, srun drops the signals it is to pass on, without a word."""
        self._listener = listener
        environ = {name: value for name, value in os.environ.items() if name not in _OF_THE_JOB}
        self.process = subprocess.Popen(
            srun_command(request, container),
            env={**environ, **request.environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            bufsize=1,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            labelled = _LABELLED.match(line.rstrip("\n"))
            if labelled:
                self.spoke.set()
                self._listener(int(labelled[1]), labelled[2])
                continue
            exited = _EXITED.match(line)
            if exited:
                self.exit_codes[f"{exited[1]} tasks {exited[2]}"] = int(exited[3])
            self._listener(None, line.rstrip("\n"))

    def wait(self, timeout: float | None = None) -> int:
        """The step's exit code: the highest of its tasks'. Raises subprocess.TimeoutExpired."""
        code = self.process.wait(timeout)
        self._reader.join(10)
        return code

    def stop(self, first: int = signal.SIGTERM) -> None:
        """Ends the step: srun passes SIGUSR1 on to the tasks, at SIGTERM it has SLURM kill them."""
        if self.process.poll() is None:
            self.process.send_signal(first)
        try:
            self.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.terminate()
            self.wait()


def srun_command(request: StepRequest, container: Container) -> list[str]:
    """The srun command line of a step."""
    nodes = sum(len(group.nodes) for group in request.groups)
    flags = ["srun", "--label", "--mpi=none", "--distribution=block:block", f"--kill-on-bad-exit={int(request.kill_on_bad_exit)}"]
    het_groups = [str(group.het_group) for group in request.groups if group.het_group is not None]
    if het_groups:
        flags += [f"--het-group={','.join(het_groups)}"]
    else:
        flags += [f"--nodelist={','.join(request.groups[0].nodes)}"]
    if len(request.groups) == 1:
        flags += [f"--nodes={nodes}", f"--ntasks={nodes * request.tasks_per_node}"]
    flags += [f"--ntasks-per-node={request.tasks_per_node}"]
    if request.bind_cpus:
        cores = max(1, min(group.cpus_per_node for group in request.groups) // request.tasks_per_node)
        flags += [f"--cpus-per-task={cores}", "--cpu-bind=cores"]
    return [*flags, *container.srun_flags(), *container.command(request.command)]
