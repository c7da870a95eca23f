"""`train RECIPE section.field=a,b --sweep`: the runs of a sweep on this machine, one after the other.

Nothing but the runs' own folders says how far a sweep is: the same command skips what is done and resumes what was begun.
"""

import argparse
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from shlex import join, quote
from types import FrameType

from megatron_entropic.commands.sweep_state import Planned, SweepState, look_at, plan_sweep
from megatron_entropic.config.loading import ConfigError
from megatron_entropic.config.sweep import sweep_runs
from megatron_entropic.launch.launcher import given_rank
from megatron_entropic.system.folder_lock import FolderLock
from megatron_entropic.system.parent_death import end_with_parent
from megatron_entropic.system.stop_signal import EXIT_STOPPED, asking_signals

logger = logging.getLogger(__name__)

EXIT_SOME_FAILED = 1
LOCK = "sweep"
"""Name of the lock on a sweep's folder: two sweeps do not run the same runs."""


def run_sweep(options: argparse.Namespace) -> int:
    """Runs what is left of a sweep, or lists it; returns the exit code: 0 when all of its runs are done.

    A run that fails is named, and the others are run. A request to stop is passed on to the run under way, which saves; the exit
    code is then EXIT_STOPPED, and the same command goes on. Raises ConfigError for settings that no run can have.
    """
    if options.resume:
        raise ConfigError("--sweep goes on by itself: give the same command without --resume")
    if given_rank(dict(os.environ)) is not None:
        raise ConfigError("--sweep starts the ranks of its runs itself; on a cluster: python -m slurm.submit train ... --sweep")
    folder, runs = sweep_runs(options.source, options.overrides)
    planned = plan_sweep(runs, overwrite=options.overwrite)
    left = [each for each in planned if each.state is not SweepState.DONE]
    print(f"{folder}: {len(runs)} runs, {len(left)} of them to do")
    print(*planned, sep="\n", flush=True)
    if options.dry_run:
        return 0
    with FolderLock(folder, "the sweep", LOCK) as lock:
        assert lock.descriptor is not None
        return _Sweep(options.source, lock.descriptor, overwrite=options.overwrite).run(planned, folder)


class _Sweep:
    """The runs as processes, one at a time. Requests to stop reach the one under way."""

    def __init__(self, source: str, lock: int, *, overwrite: bool) -> None:
        self.source = source
        self.lock = lock
        self.overwrite = overwrite
        self.asked: signal.Signals | None = None
        self.process: subprocess.Popen[bytes] | None = None

    def run(self, planned: Sequence[Planned], folder: Path) -> int:
        before = {signum: signal.signal(signum, self._pass_on) for signum in [*asking_signals(), signal.SIGINT]}
        try:
            after = [self._one(number, len(planned), each) for number, each in enumerate(planned, start=1)]
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)
        return self._conclude(after, folder)

    def _one(self, number: int, count: int, planned: Planned) -> Planned:
        """Runs it, unless it is done or the sweep is to stop; returns it as it is then."""
        if planned.state is SweepState.DONE or self.asked is not None:
            return planned
        arguments = planned.arguments(self.source, overwrite=self.overwrite)
        print(f"\nsweep: run {number} of {count}: megatron-entropic {join(arguments)}", flush=True)
        # A process of its own, as from a shell: nothing of a run that failed is left for the next. It ends with this one, and holds
        # the sweep's lock until then: who starts a killed sweep again waits for it.
        command = [sys.executable, "-m", "megatron_entropic.cli", *arguments]
        ending = end_with_parent(signal.SIGTERM)
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=ending, pass_fds=[self.lock])
        code = self.process.wait()
        if code == 0:
            return Planned(planned.run, SweepState.DONE, planned.run.cfg.trainer.steps)
        steps = look_at(planned.run).steps if (planned.run.cfg.run_dir / "config.yaml").is_file() else 0
        state = SweepState.STOPPED if code == EXIT_STOPPED or self.asked is not None else SweepState.FAILED
        logger.error("sweep: %s %s with exit code %d", planned.run.cfg.run_dir, state, code)
        return Planned(planned.run, state, steps)

    def _pass_on(self, signum: int, frame: FrameType | None) -> None:
        self.asked = signal.Signals(signum)
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signum)

    def _conclude(self, after: Sequence[Planned], folder: Path) -> int:
        """Says how the sweep ended; returns its exit code."""
        print(f"\nsweep: {sum(each.state is SweepState.DONE for each in after)} of {len(after)} runs done")
        print(*after, sep="\n")
        print(f"compare them: megatron-entropic report {quote(str(folder))}")
        if all(each.state is SweepState.DONE for each in after):
            return 0
        print("the same command again goes on: it skips what is done, resumes what was begun and tries what failed once more")
        return EXIT_STOPPED if self.asked is not None else EXIT_SOME_FAILED
