"""Preflight: looks at every node of the job before anything is started on it, and names the bad one in one line.

A first step gathers facts from one task a node (versions, model, disk, GPUs, then ports and clocks between all nodes); a second one
makes the all-reduce that the ranks will make. Both only speak through their output, so that a full disk or a broken network
cannot hide them.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from typing import Any

from slurm.allocation import Allocation, ClusterError
from slurm.containers import Container
from slurm.network import node_address
from slurm.split import Description, NodeSplit
from slurm.steps import Step, StepRequest
from slurm.verdict import NodeLimits, judge_all_reduce, judge_facts

MARK = "PREFLIGHT "
"""Begins a line of JSON in a task's output."""

Say = Callable[[str], None]


class Preflight:
    """The checks of one start of a job. `environ` is that of the ranks; `port` is tried on every node."""

    def __init__(
        self,
        allocation: Allocation,
        split: NodeSplit,
        run: Description,
        container: Container,
        python: str,
        environ: dict[str, str],
        port: int,
    ) -> None:
        self.allocation = allocation
        self.split = split
        self.run = run
        self.container = container
        self.python = python
        self.environ = environ
        self.port = port

    def check(self, limits: NodeLimits, *, all_reduce: bool, timeout_s: float, say: Say) -> None:
        """Raises ClusterError with a line for each thing found; each names a node."""
        start = time.monotonic()
        nodes = self.allocation.nodes
        facts, words = self._gather(limits, timeout_s)
        problems = judge_facts(nodes, facts, limits, words)
        if not problems and all_reduce:
            results, words = self._all_reduce(max(30.0, timeout_s - (time.monotonic() - start)))
            problems = judge_all_reduce([self.split.node_of_rank(rank) for rank in range(self.split.ranks)], results, words)
        if problems:
            raise ClusterError("\n".join(f"preflight: {problem}" for problem in problems))
        say(f"preflight: {len(nodes)} nodes are fit for the run ({time.monotonic() - start:.0f} s)")

    def _gather(self, limits: NodeLimits, timeout_s: float) -> tuple[dict[str, dict[str, Any]], list[str]]:
        command = [self.python, "-m", "megatron_entropic.doctor.node", "--port", str(self.port), "--model", self.run.model]
        command += [
            "--run-dir",
            self.run.run_dir,
            "--timeout",
            str(min(60.0, timeout_s / 2)),
            f"--device={self.run.device}",
            *(f"{node}={node_address(node)}" for node in self.allocation.nodes),
        ]
        request = StepRequest(self.allocation.groups, 1, command, self.environ, kill_on_bad_exit=False)
        reports, words = self._reports(request, timeout_s)
        facts: dict[str, dict[str, Any]] = {}
        for task, found in reports.items():
            facts[self.allocation.nodes[task]] = found
        return facts, words

    def _all_reduce(self, timeout_s: float) -> tuple[dict[int, dict[str, Any]], list[str]]:
        command = [self.python, "-m", "megatron_entropic.doctor.all_reduce", "--timeout", str(min(120.0, timeout_s / 2))]
        command += [f"--device={self.run.device}"]
        request = StepRequest([self.split.trainer], self.split.ranks_per_node, command, self.environ, kill_on_bad_exit=False)
        return self._reports(request, timeout_s)

    def _reports(self, request: StepRequest, timeout_s: float) -> tuple[dict[int, dict[str, Any]], list[str]]:
        """(what each task reported, all else that was said, with its task)."""
        reports: dict[int, dict[str, Any]] = {}
        words: list[str] = []

        def listen(task: int | None, line: str) -> None:
            if task is not None and line.startswith(MARK):
                reports.setdefault(task, {}).update(json.loads(line[len(MARK) :]))
            elif line.strip():
                words.append(line if task is None else f"{task}: {line}")

        step = Step(request, self.container, listen)
        try:
            step.wait(timeout_s)
        except subprocess.TimeoutExpired:
            words.append(f"stopped after {timeout_s:.0f} s (--preflight-timeout)")
        finally:
            step.stop()
        return reports, words
