"""A conversion job: `python -m checkpoint_tools` as a step of one task."""

from __future__ import annotations

import argparse
import os

from slurm.allocation import ClusterError, Group, read_allocation
from slurm.options import container_of, python_of
from slurm.steps import Step, StepRequest

TOOLS = ("import", "export", "inspect", "verify")


def run_conversion(options: argparse.Namespace) -> int:
    """Converts; returns the exit code of checkpoint_tools. Raises ClusterError for another word than its own."""
    if not options.arguments or options.arguments[0] not in TOOLS:
        raise ClusterError(f"convert needs one of {', '.join(TOOLS)} and its arguments; see `python -m checkpoint_tools --help`")
    group = read_allocation(os.environ).groups[0]
    container = container_of(options, gpus=bool(group.gpus_per_node))
    one_node = Group(group.nodes[:1], group.cpus_per_node, group.gpus_per_node, group.het_group)
    command = [python_of(options), "-m", "checkpoint_tools", *options.arguments]

    def listen(task: int | None, line: str) -> None:
        print(line, flush=True)

    return Step(StepRequest([one_node], 1, command), container, listen).wait()
