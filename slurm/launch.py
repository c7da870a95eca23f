"""The launcher of a job's batch script: `python -m slurm.launch train RECIPE ...` or `python -m slurm.launch convert ...`.

A training job: describe the run, split the nodes, look at every node (preflight), start the fleet's servers and the ranks, and pass
on signals. A run folder that holds a run is resumed, so that a requeued job, or the same job submitted again, resumes.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from types import FrameType

from slurm.allocation import Allocation, ClusterError, ask, read_allocation
from slurm.convert_job import run_conversion
from slurm.network import master_port, own_address
from slurm.options import add_launch_options, add_train_options
from slurm.train_job import EXIT_SAVED, TrainJob

EXIT_FAILED = 1
EXIT_USAGE = 2
REQUEUE_WAIT_S = 120.0

EPILOG = """examples, inside a job or through `sbatch slurm/train.sbatch ...`, which calls this:
  sbatch --nodes=3 --gpus-per-node=8 slurm/train.sbatch quickstart trainer.steps=100
  sbatch --nodes=3 --gpus-per-node=8 slurm/train.sbatch my_recipe.py --container=pyxis --image=/images/entropic.sqsh
  sbatch --nodes=3 --array=0-7 slurm/train.sbatch quickstart --sweep=sweep.txt
exit codes: 0 done, 75 saved after a signal and not requeued, 2 bad options or a node unfit for the run, else the ranks' own."""


def parser() -> argparse.ArgumentParser:
    """The options of `python -m slurm.launch`."""
    top = argparse.ArgumentParser(
        prog="python -m slurm.launch",
        description="What the batch script of a job calls, on the job's first node.",
        epilog="`python -m slurm.launch train --help` explains training jobs, `convert --help` conversions.",
    )
    kinds = top.add_subparsers(required=True, metavar="JOB", dest="job")
    train = kinds.add_parser(
        "train",
        allow_abbrev=False,
        help="train a recipe, or resume its run",
        description="Trains on the first nodes of the job and serves rollouts on the others. When the run's folder holds a run "
        "already, it is resumed from its latest checkpoint.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_argument("source", metavar="RECIPE", help="a recipe's name or file, a saved config.yaml, or a run's folder")
    train.add_argument(
        "overrides", nargs="*", metavar="section.field=value", help="settings to change, as for `megatron-entropic train`"
    )
    add_train_options(train)
    add_launch_options(train)
    convert = kinds.add_parser(
        "convert",
        allow_abbrev=False,
        help="convert a checkpoint",
        description="Runs `python -m checkpoint_tools` on one node: `import HF_DIR OUT_DIR ...`, `export CKPT_OR_RUN_DIR OUT_DIR ...`. "
        "Options of the job come before the word import or export; all that follows is checkpoint_tools' own.",
        epilog="Example: sbatch --partition=cpu slurm/convert.sbatch export runs/quickstart exported --dtype bfloat16",
    )
    add_launch_options(convert)
    convert.add_argument("arguments", nargs=argparse.REMAINDER, metavar="import|export ...", help="arguments of checkpoint_tools")
    return top


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the job's part and ends with its exit code; an error is one line for each problem."""
    top = parser()
    options, rest = top.parse_known_args(arguments)
    unknown = [word for word in rest if options.job != "train" or word.startswith("-")]
    if unknown:
        top.error(f"unrecognized arguments: {' '.join(unknown)}")
    if options.job == "train":
        options.overrides += rest
    try:
        code = run_conversion(options) if options.job == "convert" else _train(options)
    except (ClusterError, ValueError, OSError) as error:
        for line in str(error).splitlines():
            print(f"slurm.launch: error: {line}", file=sys.stderr, flush=True)
        code = EXIT_USAGE
    sys.exit(code)


def _train(options: argparse.Namespace) -> int:
    allocation = read_allocation(os.environ)
    job = TrainJob(options, allocation, own_address(allocation.nodes, options.interface), master_port(allocation.job_id))
    received: list[int] = []

    def pass_on(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        job.pass_on(signum)

    signal.signal(signal.SIGUSR1, pass_on)
    signal.signal(signal.SIGTERM, pass_on)
    code = job.run()
    interrupted = signal.SIGUSR1 in received and code != 0
    if code == EXIT_SAVED or interrupted:
        return _requeue(options, allocation, job)
    return code


def _requeue(options: argparse.Namespace, allocation: Allocation, job: TrainJob) -> int:
    """Puts the job back into the queue, unless SLURM is ending it anyway; the exit code for when it stays ended."""
    if allocation.start >= options.max_restarts:
        _say(f"saved; not requeued: started {allocation.start + 1} times already (--max-restarts={options.max_restarts})")
        return EXIT_SAVED
    if not job.saved_something:  # the next start would come no further, and so on forever
        _say("not requeued: no step was trained and saved before the signal; give the job more --time, or a later --signal")
        return EXIT_SAVED
    state = ask("squeue", "--noheader", "--jobs", allocation.job_id, "--format=%T").strip().splitlines()
    if not state or state[0] != "RUNNING":  # cancelled, or preempted: then SLURM itself requeues it
        _say(f"saved; the job is {state[0] if state else 'gone'}: left to SLURM")
        return EXIT_SAVED
    _say("saved; requeueing the job, which will resume from its latest checkpoint")
    try:
        ask("scontrol", "requeue", allocation.job_id)
    except ClusterError as error:
        _say(f"cannot be requeued ({error}); submit the same job again to resume")
        return EXIT_SAVED
    time.sleep(REQUEUE_WAIT_S)  # SLURM ends this process
    return EXIT_SAVED


def _say(text: str) -> None:
    print(f"slurm.launch: {text}", flush=True)


if __name__ == "__main__":
    main()
