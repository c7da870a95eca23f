"""Too few open files, and full disks: named with the number or the path, before a run starts where that can be known."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_entropic.observability.metrics import METRIC_FIELDS, MetricsWriter
from megatron_entropic.system.atomic_files import write_atomically
from tests.command_line import ROOT

FULL = Path("/dev/full")


def test_a_limit_that_is_too_low_is_refused_before_anything_starts(tmp_path: Path) -> None:
    script = f"ulimit -n 64; exec {sys.executable} -m megatron_entropic.cli train quickstart run.dir={tmp_path}/run"
    done = subprocess.run(["sh", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "only 64 files may be open at one time (ulimit -n); this run needs" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_soft_limit_is_raised() -> None:
    script = (
        "import resource; from megatron_entropic.system.open_files import allow_open_files\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 4096)); allow_open_files(2, servers=True)\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    soft, hard = map(int, done.stdout.strip("()\n").split(","))
    assert (soft > 200, hard) == (True, 4096)
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 64, "of this process nothing changed"


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")
def test_a_full_disk_is_named_with_the_path(tmp_path: Path) -> None:
    (tmp_path / ".report.html.tmp").symlink_to(FULL)
    with pytest.raises(OSError, match=r"No space left on device: '.*report\.html'"):
        write_atomically(tmp_path / "report.html", b"page")
    (tmp_path / "metrics.jsonl").symlink_to(FULL)
    metrics = object.__new__(MetricsWriter)
    metrics.path, metrics.last_step, metrics._file = tmp_path / "metrics.jsonl", None, os.open(FULL, os.O_WRONLY)
    with pytest.raises(OSError, match=r"No space left on device: '.*metrics\.jsonl'"):
        metrics.log(0, {name: 0.0 for name in METRIC_FIELDS if name != "step"})
    metrics.close()


def test_a_thread_that_ends_with_an_error_is_one_line_and_its_traceback_is_in_the_log(tmp_path: Path) -> None:
    script = (
        "import pathlib, sys, threading; from megatron_entropic.launch.worker import _log_to; _log_to(pathlib.Path(sys.argv[1]), 0)\n"
        "def write(): raise OSError(28, 'No space left on device', 'events')\n"
        "thread = threading.Thread(target=write, name='writer'); thread.start(); thread.join()"
    )
    log = tmp_path / "rank-0.log"
    done = subprocess.run([sys.executable, "-c", script, str(log)], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.endswith("[rank 0] writer ended: [Errno 28] No space left on device: 'events'\n")
    assert "Traceback" not in done.stderr
    assert "in write" in log.read_text()
