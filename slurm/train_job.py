"""One start of a training job: its steps in order, and what each of them says, under the speaker's name."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

from slurm.allocation import Allocation, ClusterError, Group, ask
from slurm.options import container_of, python_of
from slurm.preflight import Preflight
from slurm.split import DESCRIPTION, Description, NodeSplit, split_nodes
from slurm.steps import Step, StepRequest
from slurm.verdict import NodeLimits

EXIT_SAVED = 75
"""Exit code of ranks that saved a checkpoint because a signal told them to end (EX_TEMPFAIL)."""
FLEET_GRACE_S = 90.0
"""Time that the ranks get to notice, and to name, a server that died."""


class TrainJob:
    """The steps of a start, and who of them is running. `address` and `port` are the rendezvous."""

    def __init__(self, options: argparse.Namespace, allocation: Allocation, address: str, port: int) -> None:
        self.options = options
        self.allocation = allocation
        self.container = container_of(options, gpus=bool(allocation.groups[0].gpus_per_node))
        self.python = python_of(options)
        self.port = port
        self.environ = {"MASTER_ADDR": address, "MASTER_PORT": str(port)}
        if options.interface:
            self.environ.update(GLOO_SOCKET_IFNAME=options.interface, NCCL_SOCKET_IFNAME=options.interface)
        self._checkpoint: Path | None = None
        self._checkpoint_before: str | None = None
        self._stopped = False
        self._to_pass_on: list[int] = []
        self._ranks: Step | None = None
        self._speaking = threading.Lock()

    def pass_on(self, signum: int) -> None:
        """Gives the ranks a signal that the batch script got; before there are any, the start is given up. For signal handlers."""
        self._stopped = True
        if self._ranks is None or self._ranks.process.poll() is None:
            if self._ranks is None:
                does = "before training started"
            else:
                does = "passed on to the ranks" if self._hears(self._ranks, signum) else "the ranks get it as soon as they run"
            os.write(1, f"slurm.launch: got {signal.Signals(signum).name}: {does}\n".encode())  # print may be under way below us
        if signum == signal.SIGTERM:  # nothing else matters any more
            self._to_pass_on.clear()
        self._to_pass_on.append(signum)
        self._deliver()

    def _deliver(self) -> None:
        """Sends the ranks the signals that they can hear by now, each of them once."""
        while self._ranks is not None and self._to_pass_on and self._hears(self._ranks, self._to_pass_on[0]):
            self._ranks.process.send_signal(self._to_pass_on.pop(0))

    @staticmethod
    def _hears(ranks: Step, signum: int) -> bool:
        """Whether srun does something about the signal. SIGTERM is for itself: it ends the step."""
        return signum == signal.SIGTERM or ranks.spoke.is_set()

    @property
    def saved_something(self) -> bool:
        """Whether the run's latest checkpoint is another one than at the beginning of this start."""
        return self._checkpoint is not None and _read(self._checkpoint) != self._checkpoint_before

    def run(self) -> int:
        """Runs the job's steps; returns the ranks' exit code. Raises ClusterError when it does not come to that."""
        self.say(f"job {self.allocation.job_id}, start {self.allocation.start + 1}, nodes {', '.join(self.allocation.nodes)}")
        run = self._describe()
        self._checkpoint = Path(run.run_dir) / "checkpoints" / "latest"
        self._checkpoint_before = _read(self._checkpoint)
        split = split_nodes(self.allocation, run, self.options.ranks_per_node)
        self.say(self._plan(run, split))
        if self.options.preflight != "off":
            limits = NodeLimits(run.run_dir_bytes, int(self.options.min_tmp_gb * 2**30), self.options.max_clock_skew)
            preflight = Preflight(self.allocation, split, run, self.container, self.python, self.environ, self.port)
            preflight.check(limits, all_reduce=self.options.preflight == "full", timeout_s=self.options.preflight_timeout, say=self.say)
        if self._stopped:
            return EXIT_SAVED
        return self._train(run, split)

    def _describe(self) -> Description:
        first = self.allocation.groups[0]
        command = [self.python, "-m", "slurm.describe", self.options.source, *self.options.overrides]
        if self.options.sweep:
            command += ["--sweep", self.options.sweep]
            command += ["--task", str(self.allocation.task_id)] if self.allocation.task_id is not None else []
        found: list[str] = []
        words: list[str] = []

        def listen(task: int | None, line: str) -> None:
            (found if line.startswith(DESCRIPTION) else words).append(line)

        code = Step(
            StepRequest([Group(first.nodes[:1], first.cpus_per_node, first.gpus_per_node, first.het_group)], 1, command),
            self.container,
            listen,
        ).wait()
        if code or not found:
            complaint = [line for line in words if line.startswith("error: ")] or words[-3:]
            raise ClusterError("\n".join(complaint).replace("error: ", "", 1) or f"{' '.join(command)}: exit code {code}")
        return Description.parse(found[0][len(DESCRIPTION) :])

    def _plan(self, run: Description, split: NodeSplit) -> str:
        servers = f"{run.servers} servers " + (f"on {', '.join(split.fleet.nodes)}" if split.fleet else "beside rank 0")
        does = "resuming" if run.has_run else "starting"
        ranks = f"{split.ranks} ranks on {', '.join(split.trainer.nodes)}"
        return f"{does} the run in {run.run_dir}: {ranks}" + (f", {servers}" if run.uses_servers else "")

    def _train(self, run: Description, split: NodeSplit) -> int:
        run_dir = Path(run.run_dir)
        (run_dir / "logs").mkdir(parents=True, exist_ok=True)
        fleet = None
        if split.fleet is not None:  # a folder of this start's own: what servers of an earlier one left there is not looked at
            self.environ["MEGATRON_ENTROPIC_FLEET_DIR"] = str(run_dir / "fleet" / f"{self.allocation.job_id}-{self.allocation.start}")
            command = [
                self.python,
                "-m",
                "megatron_entropic.cli",
                "serve",
                run.run_dir if run.has_run else self.options.source,
                *run.overrides,
            ]
            speakers = {number: f"fleet {node}" for number, node in enumerate(split.fleet.nodes)}
            fleet = Step(StepRequest([split.fleet], 1, command, self.environ), self.container, self._listener(speakers, run_dir))
        try:
            self._ranks = self._start_ranks(run, split)
            return self._wait_for_ranks(self._ranks, fleet)
        finally:
            if self._ranks is not None:
                self._ranks.stop()
            if fleet is not None:
                fleet.stop(signal.SIGUSR1)
            shutil.rmtree(run_dir / "fleet", ignore_errors=True)  # keys of servers that are no more

    def _start_ranks(self, run: Description, split: NodeSplit) -> Step:
        what = [run.run_dir, "--resume"] if run.has_run else [self.options.source]
        command = [self.python, "-m", "megatron_entropic.cli", "train", *what, *run.overrides]
        threads = max(1, split.trainer.cpus_per_node // split.ranks_per_node)
        environ = {
            **self.environ,
            "LOCAL_WORLD_SIZE": str(split.ranks_per_node),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
        }
        request = StepRequest(
            [split.trainer], split.ranks_per_node, command, environ, bind_cpus=self.options.cpu_bind == "auto" and can_bind()
        )
        speakers = {rank: f"rank {rank} {split.node_of_rank(rank)}" for rank in range(split.ranks)}
        return Step(request, self.container, self._listener(speakers, Path(run.run_dir)))

    def _wait_for_ranks(self, ranks: Step, fleet: Step | None) -> int:
        while ranks.process.poll() is None:
            self._deliver()
            time.sleep(0.2)
            if fleet is not None and fleet.process.poll() is not None:
                self.say(f"the fleet's servers ended; the ranks get {FLEET_GRACE_S:.0f} s to say which one they miss")
                try:
                    ranks.wait(FLEET_GRACE_S)
                except subprocess.TimeoutExpired:
                    ranks.stop()
                fleet = None
        code = ranks.wait()
        others = {who: other for who, other in ranks.exit_codes.items() if other != EXIT_SAVED}
        if code == EXIT_SAVED and others and not self._stopped:  # a rank failed, and the others saved on being ended
            self.say("; ".join(f"{who} failed with exit code {other}" for who, other in others.items()))
            return max(others.values())
        return code

    def _listener(self, speakers: dict[int, str], run_dir: Path) -> Speakers:
        return Speakers(speakers, run_dir / "logs", self._speaking)

    def say(self, text: str) -> None:
        with self._speaking:
            print(f"slurm.launch: {text}", flush=True)


class Speakers:
    """A step's listener: prints every line under its speaker's name, and adds it to the speaker's own file in `folder`."""

    def __init__(self, names: dict[int, str], folder: Path, speaking: threading.Lock) -> None:
        self.names = names
        self.folder = folder
        self._speaking = speaking

    def __call__(self, task: int | None, line: str) -> None:
        name = "srun" if task is None else self.names.get(task, f"task {task}")
        with self._speaking:
            print(f"[{name}] {line}", flush=True)
        if task is not None:
            parts = name.split()
            with (self.folder / f"{parts[0]}-{parts[1]}.out").open("a", encoding="utf-8") as file:
                file.write(line + "\n")


def can_bind() -> bool:
    """Whether this cluster's SLURM binds tasks to cores."""
    for line in ask("scontrol", "show", "config").splitlines():
        if line.startswith("TaskPlugin ") and ("affinity" in line or "cgroup" in line):
            return True
    return False


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None
