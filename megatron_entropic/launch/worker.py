"""One rank of a run, with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set.

`python -m megatron_entropic.launch.worker CONFIG_YAML [--allow-fallback] [--allow-change]` ends with exit code

    0               the run is done
    75              asked to stop by SIGTERM, SIGUSR1 or SIGHUP, it has saved: resume it to continue (EXIT_STOPPED)
    1               it failed; the error was printed (EXIT_FAILED)
    3               it only followed another rank, which failed (EXIT_FOLLOWED)
    128 + signal    ended at once, without saving: by its launcher's SIGINT, a second request to stop, or after checkpoint.grace_s

Started by torchrun or srun, SIGINT (Ctrl-C) asks it to stop like the others.
"""

import atexit
import ctypes
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from megatron_entropic.config import Config, ParallelConfig
from megatron_entropic.config.loading import load_config
from megatron_entropic.config.resume import ALLOW_CHANGE
from megatron_entropic.distributed.collective_errors import peer_is_gone, peer_is_late
from megatron_entropic.errors import ReportedError
from megatron_entropic.system.cuda_variables import set_cuda_variables
from megatron_entropic.system.devices import ask_for_cpu
from megatron_entropic.system.many_imports import end_process, many_imports
from megatron_entropic.system.stop_signal import EXIT_STOPPED, StopRequested, handle_stop_signals

EXIT_FAILED = 1
EXIT_FOLLOWED = 3
"""Exit code of a rank that stopped only because another did."""

ALLOW_FALLBACK = "--allow-fallback"
LAUNCHER_VARIABLE = "MEGATRON_ENTROPIC_LAUNCHER_PID"
"""Environment variable of ranks that this package's launcher started: its process id."""

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Joins the other ranks and trains. An error is printed as one line; the exit code is not 0."""
    end_process(run_rank(load_config(Path(sys.argv[1])), sys.argv[2:]))


def run_rank(cfg: Config, flags: Sequence[str] = ()) -> int:
    """Trains as the rank the environment names; returns the exit code. `flags`: ALLOW_FALLBACK, ALLOW_CHANGE."""
    handle_stop_signals(cfg.checkpoint.grace_s, interrupt_saves=LAUNCHER_VARIABLE not in os.environ)
    _end_with_launcher()
    rank = int(os.environ.get("RANK", "0"))
    _log_to(cfg.run_dir / "logs" / f"rank-{rank}.log", rank)
    _prepare_devices(cfg.parallel)

    # Only now: whoever loads the settings reports a bad one before seconds go into these imports.
    with many_imports():
        from megatron_entropic import platform

        platform.import_megatron()
        from megatron_entropic.distributed.parallel import initialize_parallel, shutdown
        from megatron_entropic.distributed.rank_zero import PeerEndedError
        from megatron_entropic.trainer import train
    gc.freeze()  # it is there to stay: no later collection looks at it again
    atexit.register(gc.unfreeze)  # before Python takes its modules apart: extensions complain of what is kept then

    try:
        if cfg.trainer.deterministic:
            platform.make_deterministic()
        parallel = initialize_parallel(cfg.parallel, cfg.trainer.seed, cfg.run_dir)
        train(cfg, parallel, allow_fallback=ALLOW_FALLBACK in flags, allow_change=ALLOW_CHANGE in flags)
    except StopRequested as request:
        logging.info("%s; resume with: megatron-entropic train %s --resume", request, cfg.run_dir)
        return EXIT_STOPPED
    except PeerEndedError as error:
        logging.warning("stopped with another rank: %s", error)
        return EXIT_FOLLOWED
    except (ReportedError, ValueError, OSError) as error:
        logging.getLogger(__name__).debug("where the error below comes from", exc_info=True)
        logging.error("error: %s", error)
        return EXIT_FAILED
    except RuntimeError as error:
        return _after_failure(error, cfg.parallel.timeout_s)
    shutdown()
    return 0


def _prepare_devices(parallel: ParallelConfig) -> None:
    """Says in this process's environment what it computes on; before torch is imported, which reads it."""
    if parallel.device == "cpu":
        ask_for_cpu(os.environ)
    else:
        set_cuda_variables(os.environ, model_parallel=parallel.tensor * parallel.context > 1)


def _after_failure(error: RuntimeError, timeout_s: float) -> int:
    """The exit code of a rank whose GPU or collective failed, with one line about it. Raises what is no such error."""
    from megatron_entropic.platform import device_failure

    if failure := device_failure(error):
        logging.getLogger(__name__).debug("where the error below comes from", exc_info=error)
        logging.error("error: %s", failure)
        return EXIT_FAILED
    if not (peer_is_gone(error) or peer_is_late(error)):
        raise error
    logging.getLogger(__name__).debug("where the collective was called:", exc_info=error)
    if peer_is_gone(error):
        logging.warning("stopped with another rank, which ended during a collective")
        return EXIT_FOLLOWED
    logging.error("error: another rank did not come to a collective within parallel.timeout_s=%g s: it is hung, or lost", timeout_s)
    return EXIT_FAILED


def _log_to(path: Path, rank: int) -> None:
    """Everything goes to the rank's log file, warnings of other packages to it alone; rank 0 also speaks on the terminal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    to_file = _LogFile(path)
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    to_terminal = logging.StreamHandler()
    to_terminal.setLevel(logging.INFO if rank == 0 else logging.ERROR)
    to_terminal.setFormatter(logging.Formatter(f"%(asctime)s [rank {rank}] %(message)s", datefmt="%H:%M:%S"))
    to_terminal.addFilter(lambda record: record.name.startswith(("megatron_entropic", "root")) or record.levelno >= logging.ERROR)
    logging.basicConfig(level=logging.INFO, handlers=[to_file, to_terminal], force=True)
    logging.getLogger("megatron_entropic").setLevel(logging.DEBUG)
    logging.captureWarnings(capture=True)
    threading.excepthook = _log_ended_thread


def _log_ended_thread(ended: threading.ExceptHookArgs) -> None:
    """One line instead of a traceback, which goes to the log file: what a thread failed at is raised again where it is waited for."""
    name = ended.thread.name if ended.thread else "a thread"
    logging.error("%s ended: %s", name, ended.exc_value or ended.exc_type.__name__)
    trace = (ended.exc_type, ended.exc_value or ended.exc_type(), ended.exc_traceback)
    logging.getLogger(__name__).debug("where the error above comes from", exc_info=trace)


class _LogFile(logging.FileHandler):
    """A log that can no longer be written (disk full) is one line on stderr, not a traceback for every message."""

    _told = False

    def handleError(self, record: logging.LogRecord) -> None:
        if not self._told:
            self._told = True
            print(f"{self.baseFilename}: the log cannot be written: {sys.exc_info()[1]}", file=sys.stderr)


def _end_with_launcher() -> None:
    """SIGINT, which ends this process at once, comes by itself when the launcher dies."""
    if sys.platform == "linux" and os.environ.get(LAUNCHER_VARIABLE):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGINT)
        if os.getppid() != int(os.environ[LAUNCHER_VARIABLE]):  # it died before the line above
            sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    main()
