"""`megatron-entropic watch`: every way a run can stand, lines without a terminal, a picture of 80 columns with one."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_entropic.observability.dashboard.plots import rows_with_target, shrunk, sparkline
from megatron_entropic.observability.dashboard.watched_run import FAILED, FINISHED, KILLED, NOT_STARTED, RUNNING, STOPPED, WatchedRun
from megatron_entropic.observability.history import record_end, record_start
from megatron_entropic.observability.run_warnings import RunWarning, append_warning
from megatron_entropic.system.folder_lock import FolderLock
from tests.command_line import ROOT, megatron_entropic
from tests.observability.synthetic_runs import MakeRun, synthetic_metrics

NAN = float("nan")


def polled(path: Path) -> WatchedRun:
    run = WatchedRun(path)
    run.poll()
    return run


def test_every_way_a_run_can_stand(make_run: MakeRun, tmp_path: Path) -> None:
    assert polled(tmp_path / "nowhere").status == NOT_STARTED
    run_dir = make_run(steps=4, planned=9)
    with FolderLock(run_dir, "the run"):
        record_start(run_dir, ["train", "quickstart"])
        assert polled(run_dir).status == RUNNING
        assert polled(run_dir).seconds_left == pytest.approx(5 * 3, rel=0.4)
    assert (polled(run_dir).status, polled(run_dir).seconds_left) == (KILLED, None)
    for code, status in ((75, STOPPED), (3, FAILED), (0, FINISHED)):
        record_start(run_dir, ["train", "quickstart"])
        record_end(run_dir, code)
        assert polled(run_dir).status == status
    assert polled(run_dir).done == 4


def test_metrics_are_read_as_they_come_and_again_when_a_run_is_resumed(make_run: MakeRun) -> None:
    run_dir = make_run(steps=3, planned=9)
    path, lines = run_dir / "metrics.jsonl", [json.dumps({"step": step, **line}) for step, line in enumerate(synthetic_metrics(9))]
    run = polled(run_dir)
    with path.open("a") as file:
        file.write(lines[3][:40])
        file.flush()
        run.poll()
        assert run.done == 3  # a torn line waits
        file.write(lines[3][40:] + "\nno JSON\n" + lines[4] + "\n")
    run.poll()
    assert run.done == 5
    path.write_text("\n".join(lines[:2]) + "\n")
    run.poll()
    assert [line["step"] for line in run.metrics] == [0, 1]
    with path.open("a") as file:
        file.write("".join(f"{line}\n" for line in lines[2:]))
    run.poll()
    assert [line["step"] for line in run.metrics] == list(range(9))


def test_without_a_terminal_it_prints_lines(make_run: MakeRun, tmp_path: Path) -> None:
    run_dir = make_run("with a space #1", steps=4, planned=9)
    append_warning(run_dir, RunWarning("no_signal", 2, "no reward signal"))
    outcome = megatron_entropic("watch", str(run_dir), str(tmp_path / "later"), "--once")
    assert outcome.code == 0
    first, second, third, fourth = outcome.output.splitlines()
    assert re.fullmatch(r"with a space #1: step 4/9  entropy 0\.\d{3}  target 0\.900  alpha [+-]0\.\d{3}  reward .*", first)
    assert second == "with a space #1: warned at step 3: no reward signal"
    assert third == "with a space #1: killed, 4 of 9 steps done"
    assert fourth == "later: not started, 0 of ? steps done"


def test_a_terminal_of_80_columns_shows_two_runs_beside_each_other(make_run: MakeRun) -> None:
    one, other = make_run("one", steps=40, text="x"), make_run("[red]two", steps=12, planned=40)
    for run_dir in (one, other):
        record_start(run_dir, ["train", "quickstart"])
        record_end(run_dir, 0)
    append_warning(other, RunWarning("no_signal", 2, "no \x1b[31mreward signal"))
    screen = on_a_terminal("watch", str(one), str(other))
    lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in screen.splitlines()]
    beside = next(line for line in lines if "one" in line)
    assert "[red]two" in beside, "a name is shown as it is"
    assert max(map(len, lines)) <= 80
    assert any("┄target 0.900" in line for line in lines)
    assert "no \\u001b[31mreward signal" in "".join(lines)
    assert any(re.search("reward +0.9.*[▁▂▃▄▅▆▇█]{8}", line) for line in lines)


def on_a_terminal(*arguments: str) -> str:
    """What the command draws on a terminal of 80 columns."""
    master, slave = pty.openpty()
    environ = {**os.environ, "COLUMNS": "80", "LINES": "40", "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-m", "megatron_entropic.cli", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, env=environ, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    drawn = b""
    try:
        while chunk := os.read(master, 65536):
            drawn += chunk
    except OSError:  # the terminal's end, on Linux
        pass
    finally:
        os.close(master)
        process.kill()
    assert process.wait() == 0, drawn.decode()
    return drawn.decode()


def test_ctrl_c_ends_it_cleanly(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "megatron_entropic.cli", "watch", str(tmp_path / "later"), "--every", "60"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "later: not started, 0 of ? steps done\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out.strip(), err) == (0, "", "")


def test_curves() -> None:
    assert sparkline([0, 1, 2, NAN, 3], 5) == "▁▃▆ █"
    assert sparkline([NAN], 4) == ""
    assert sparkline([2.0] * 9, 3) == "▄▄▄"
    assert shrunk([1, 3, 5, NAN], 2) == [2, 5]
    rows = rows_with_target([0.0, 1.0], [0.5, 0.5], 10, 3)
    assert rows == [" •", "┄┄", "• "]
    assert rows_with_target([NAN], [NAN], 10, 3) == []
