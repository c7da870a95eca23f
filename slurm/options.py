"""The launcher's options, which `slurm.submit` passes on."""

from __future__ import annotations

import argparse
import os
import sys

from slurm.containers import KINDS, Container

PREFLIGHT = ("full", "quick", "off")


def add_launch_options(parser: argparse.ArgumentParser) -> None:
    """Options of every kind of job: where its commands run."""
    where = parser.add_argument_group("environment of the run")
    where.add_argument(
        "--python",
        default=os.environ.get("ENTROPIC_PYTHON"),
        help="Python of the run's environment on the nodes, or in the container (default: $ENTROPIC_PYTHON, else the launcher's own, "
        "in a container python3)",
    )
    where.add_argument(
        "--container",
        choices=KINDS,
        default="none",
        help="none: a plain environment on all nodes; pyxis: srun --container-image (pyxis and enroot); apptainer: `apptainer exec` "
        "(default: %(default)s)",
    )
    where.add_argument("--image", help="the container's image: a .sqsh file or registry name for pyxis, a .sif file for Apptainer")
    where.add_argument(
        "--mount",
        action="append",
        default=[],
        metavar="SRC[:DST]",
        help="a folder the container shall see; the folder the job was submitted from is always there; may be repeated",
    )


def add_train_options(parser: argparse.ArgumentParser) -> None:
    """Options of training jobs."""
    shape = parser.add_argument_group("ranks and servers")
    shape.add_argument(
        "--ranks-per-node",
        type=int,
        metavar="N",
        help="ranks on each of the trainer's nodes (default: its GPUs). The first nodes train, as many as the layout's ranks fill; the "
        "others serve rollouts; without others the servers run beside rank 0",
    )
    shape.add_argument(
        "--interface",
        metavar="NAME",
        help="network interface for gloo, NCCL's bootstrap and the servers, such as ib0 (default: that on the way to the first node)",
    )
    shape.add_argument(
        "--cpu-bind",
        choices=("auto", "off"),
        default="auto",
        help="auto gives every rank an equal part of the node's cores where SLURM can bind; off: SLURM decides (default: %(default)s)",
    )
    check = parser.add_argument_group("preflight")
    check.add_argument(
        "--preflight",
        choices=PREFLIGHT,
        default="full",
        help="checks on every node before training. full: versions, driver, model, disk, ports, clocks, and an all-reduce; "
        "quick: without the all-reduce; off (default: %(default)s)",
    )
    check.add_argument("--preflight-timeout", type=float, default=300.0, metavar="S", help="seconds it may take (default: %(default)g)")
    check.add_argument(
        "--min-tmp-gb", type=float, default=1.0, metavar="GB", help="free space wanted in every node's TMPDIR (default: %(default)g)"
    )
    check.add_argument(
        "--max-clock-skew", type=float, default=5.0, metavar="S", help="seconds by which clocks may differ (default: %(default)g)"
    )
    again = parser.add_argument_group("requeue")
    again.add_argument(
        "--max-restarts",
        type=int,
        default=100,
        metavar="N",
        help="how often a preempted job, or one at its time limit, is put back into the queue (default: %(default)d; 0 never)",
    )
    sweep = parser.add_argument_group("sweeps")
    sweep.add_argument(
        "--sweep",
        nargs="?",
        const="",
        metavar="FILE",
        help="one run a task of a job array: line K (from 0) of FILE holds further overrides for task K. A line that sets neither "
        "run.name nor run.dir gets -K appended to the run's name. slurm.submit writes FILE, and says which tasks, where none is given: "
        "one run for every combination of settings with commas, such as trainer.seed=0,1,2; those that are done are left out",
    )


def container_of(options: argparse.Namespace, *, gpus: bool) -> Container:
    """The container the options name. Raises ValueError when its image is missing or superfluous."""
    if (options.container == "none") != (options.image is None):
        raise ValueError("--container=pyxis or --container=apptainer go together with --image, and --container=none with none")
    return Container(options.container, options.image or "", tuple(options.mount), gpus)


def python_of(options: argparse.Namespace) -> str:
    """The Python of the run's environment."""
    return str(options.python or (sys.executable if options.container == "none" else "python3"))
