"""Starts the ranks of a run on this machine, watches them, and leaves none behind.

Under torchrun or srun the ranks exist already: `given_rank` finds them and nothing is started here.
"""

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, MutableMapping, Sequence
from pathlib import Path
from types import FrameType

from megatron_entropic.launch.worker import EXIT_FAILED, EXIT_FOLLOWED, LAUNCHER_VARIABLE
from megatron_entropic.system.devices import ranks_per_node
from megatron_entropic.system.network import address_toward, interface_of
from megatron_entropic.system.orphans import end_orphaned_servers, inherit_orphans
from megatron_entropic.system.rendezvous import LISTENER_VARIABLE, listen
from megatron_entropic.system.stop_signal import EXIT_STOPPED, REPEAT_S, asking_signals, held_back_signals

logger = logging.getLogger(__name__)

GRACE_S = 20.0
"""Time that ranks get to unwind after one of them failed or the run was told to stop at once."""
SERVERS_GRACE_S = 8.0
"""Time that rollout servers whose rank was killed get to end by themselves."""
INTERRUPT_REPEAT_S = 0.3
"""Copies of one Ctrl-C, from the terminal and a program around this one, arrive within this; a later one is a second."""


def given_rank(environ: MutableMapping[str, str]) -> int | None:
    """This process's rank when torchrun or srun started it, else None. Completes `environ` from SLURM's variables.

    Under srun (a step of more than one task; the batch script itself is none) RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE and
    MASTER_ADDR, the first node of the step, are derived where they are not set. Without a MASTER_PORT rank 0 takes a free one and
    tells the others through the run's folder. Whoever started the ranks, GLOO_SOCKET_IFNAME becomes the interface on the way to the
    first node, unless it is set.
    """
    if not ("RANK" in environ and "WORLD_SIZE" in environ) and not _ranks_of_srun(environ):
        return None
    if "GLOO_SOCKET_IFNAME" not in environ and "MASTER_ADDR" in environ and (interface := _interface_toward(environ["MASTER_ADDR"])):
        environ["GLOO_SOCKET_IFNAME"] = interface
    return int(environ["RANK"])


def _ranks_of_srun(environ: MutableMapping[str, str]) -> bool:
    """Whether this process is a task of a step of several; `environ` then has what torchrun would have set, but for a port."""
    if int(environ.get("SLURM_STEP_NUM_TASKS", "1")) < 2:
        return False
    environ.setdefault("RANK", environ["SLURM_PROCID"])
    environ.setdefault("WORLD_SIZE", environ["SLURM_STEP_NUM_TASKS"])
    environ.setdefault("LOCAL_RANK", environ.get("SLURM_LOCALID", "0"))
    if tasks := environ.get("SLURM_STEP_TASKS_PER_NODE"):
        environ.setdefault("LOCAL_WORLD_SIZE", str(ranks_per_node(tasks, int(environ.get("SLURM_NODEID", "0")))))
    if "MASTER_ADDR" not in environ:
        hosts = subprocess.run(
            ["scontrol", "show", "hostnames", environ["SLURM_STEP_NODELIST"]], capture_output=True, text=True, check=True
        )
        environ["MASTER_ADDR"] = hosts.stdout.split()[0]
    return True


def _interface_toward(host: str) -> str | None:
    """The network interface on the way to `host`. None for a name that is unknown, which the rendezvous will report.

    gloo by itself takes the interface of this machine's host name, which may be no way to other nodes (127.0.1.1 on Debian).
    """
    try:
        return interface_of(address_toward(host))
    except OSError:
        return None


def launch_ranks(
    config_path: Path, world_size: int, log_dir: Path, *, grace_s: float, arguments: Sequence[str] = (), lock: int | None = None
) -> int:
    """Runs all ranks of the run as processes of this machine and waits; returns the exit code of the run.

    Rank 0 writes to this terminal; what the others print goes to log_dir/rank-N.out (all of them log to rank-N.log). When
    a rank fails the others are told to stop at once, given GRACE_S to close what they own, then killed; the failed rank's
    last lines are shown. A first SIGTERM, SIGUSR1, SIGHUP or SIGINT (Ctrl-C) is passed on, and the ranks save and end within
    `grace_s`; a second one ends them at once. `arguments` are the worker's. The ranks inherit the open file `lock`, so that what
    it locks stays locked until the last of them has ended, also when this process is killed.
    """
    log_dir.mkdir(parents=True, exist_ok=True)
    inherit_orphans()
    signals = _Signals(grace_s)
    with held_back_signals(), listen("127.0.0.1") as listener:
        inherited = [] if lock is None else [lock]
        ranks = [_start(rank, world_size, [str(config_path), *arguments], log_dir, listener, inherited) for rank in range(world_size)]
    signals.ranks = ranks
    try:
        failed = _wait_for_first_failure(ranks, signals)
    finally:
        _end(ranks)
        signals.restore()
    if signals.ended_by is not None:
        logger.error("ended by %s", signals.ended_by.name)
        return 128 + signals.ended_by
    if failed is None:
        return EXIT_STOPPED if any(process.returncode == EXIT_STOPPED for process in ranks) else 0
    return _exit_code(failed, ranks[failed].returncode, log_dir)


def _exit_code(failed: int, code: int, log_dir: Path) -> int:
    """The run's exit code for that of its failed rank, whose end is shown."""
    if failed:
        log = log_dir / f"rank-{failed}.out"
        logger.error("rank %d failed with exit code %d; the end of %s:\n%s", failed, code, log, _tail(log))
    elif code < 0:
        logger.error("rank %d was killed by %s", failed, signal.Signals(-code).name)
    return code if code > 0 else EXIT_FAILED


def _start(
    rank: int, world_size: int, arguments: Sequence[str], log_dir: Path, listener: socket.socket, inherited: Sequence[int]
) -> subprocess.Popen[bytes]:
    environ = {
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // world_size)),
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(world_size),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(listener.getsockname()[1]),
        LAUNCHER_VARIABLE: str(os.getpid()),
    }
    environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)
    command = [sys.executable, "-m", "megatron_entropic.launch.worker", *arguments]
    if rank == 0:
        environ[LISTENER_VARIABLE] = str(listener.fileno())
        files = [*inherited, listener.fileno()]
        return subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL, start_new_session=True, pass_fds=files)
    with (log_dir / f"rank-{rank}.out").open("wb") as log:
        return subprocess.Popen(
            command,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=inherited,
        )


class _Signals:
    """Signal handling of the launcher: the first that asks to stop is passed on, a second ends the ranks.

    Handlers only take note; `check` acts. They are installed before there are ranks, so that no signal is lost.
    """

    def __init__(self, grace_s: float) -> None:
        self.ended_by: signal.Signals | None = None
        """The signal that ended the ranks without letting them save."""
        self.ranks: Sequence[subprocess.Popen[bytes]] = ()
        self._asked: tuple[signal.Signals, float] | None = None
        self._second: signal.Signals | None = None
        self._told = False
        self._grace_s = grace_s
        self._before = {signum: signal.signal(signum, self._note) for signum in [*asking_signals(), signal.SIGINT]}

    def restore(self) -> None:
        """Gives the signals back the meaning that they had before."""
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def check(self) -> None:
        """Passes a request to stop on and tells the user of it; ends ranks after a second one, or when they take too long."""
        if self._asked is None or self.ended_by is not None:
            return
        signum, at = self._asked
        if not self._told:
            self._told = True
            _send(self.ranks, signal.SIGTERM if signum == signal.SIGINT else signum)  # SIGINT ends ranks at once
            logger.info("%s: the run saves and stops, within %g s; once more ends it at once", signum.name, self._grace_s)
        if self._second is None and time.monotonic() - at > self._grace_s + GRACE_S:
            self._second = signum
        if self._second is not None:
            self.ended_by = self._second
            _send(self.ranks, signal.SIGINT)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._asked is None:
            self._asked = signal.Signals(signum), now
        elif now - self._asked[1] > (INTERRUPT_REPEAT_S if signum == signal.SIGINT else REPEAT_S):
            self._second = signal.Signals(signum)


def _send(ranks: Iterable[subprocess.Popen[bytes]], signum: signal.Signals) -> None:
    for process in ranks:
        if process.poll() is None:
            process.send_signal(signum)


def _wait_for_first_failure(ranks: list[subprocess.Popen[bytes]], signals: _Signals) -> int | None:
    """Index of a rank that ended with an error of its own, or None once all ended well.

    Ranks that merely followed may be seen first: the one that knows the reason is about to say it. When none does within GRACE_S,
    the first that followed.
    """
    followed_at: float | None = None
    while True:
        signals.check()
        codes = [process.poll() for process in ranks]
        failed = [rank for rank, code in enumerate(codes) if code not in (None, 0, EXIT_STOPPED)]
        causes = [rank for rank in failed if codes[rank] != EXIT_FOLLOWED]
        if causes:
            return causes[0]
        if failed:
            followed_at = followed_at or time.monotonic()
            if time.monotonic() - followed_at > GRACE_S or None not in codes:
                return failed[0]
        if None not in codes:
            return None
        time.sleep(0.05)


def _end(ranks: Iterable[subprocess.Popen[bytes]]) -> None:
    """Has every rank unwind at once, without saving, then kills what is left, by pid."""
    deadline = time.monotonic() + GRACE_S
    _send(ranks, signal.SIGINT)
    for process in ranks:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    end_orphaned_servers(SERVERS_GRACE_S)


def _tail(path: Path, lines: int = 12) -> str:
    return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
